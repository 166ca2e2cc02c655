import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armillary.recipe import (
    DamagedFileError,
    ForeignFileError,
    UsageError,
    model_json,
    read_json,
    read_sealed,
    write_sealed,
)

READ = {"what": "test file", "newest": 2, "remedy": "write it again"}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(document=st.dictionaries(st.text().filter(lambda key: key not in ("format", "sha256")), VALUES, max_size=4))
def test_what_was_written_is_read_back(tmp_path_factory, document):
    path = tmp_path_factory.mktemp("sealed") / "file.json"
    write_sealed(path, {"format": 2, **document})
    assert read_sealed(path, **READ) == {"format": 2, **document}


def test_any_changed_byte_is_noticed(tmp_path):
    path = tmp_path / "file.json"
    write_sealed(path, {"format": 2, "tokens": 1234, "name": "风"})
    good, whole = path.read_bytes(), read_sealed(path, **READ)
    for place in range(len(good)):
        for flipped in (good[place] ^ 1, good[place] ^ 0x10):
            path.write_bytes(good[:place] + bytes([flipped]) + good[place + 1 :])
            try:
                read = read_sealed(path, **READ)
            except (DamagedFileError, ForeignFileError):
                continue
            assert read == whole
    for length in range(len(good) - 2):
        path.write_bytes(good[:length])
        with pytest.raises(DamagedFileError, match="write it again"):
            read_sealed(path, **READ)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"format": "2"}', '{"format": true}', "[" * 100_000, "\xff"])
def test_what_is_no_document_is_damaged(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DamagedFileError, match=str(path)):
        read_sealed(path, **READ)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(
        DamagedFileError, match=r"plan\.json: is a folder, but the plan is a file; move it away: run it again"
    ):
        read_json(tmp_path / "plan.json", "the plan", "run it again")


def test_a_newer_format_is_refused_and_stays(tmp_path):
    path = tmp_path / "file.json"
    write_sealed(path, {"format": 3})
    before = path.read_bytes()
    with pytest.raises(ForeignFileError, match="format 3"):
        read_sealed(path, **READ)
    assert path.read_bytes() == before


def test_a_format_older_than_the_seal_is_read(tmp_path):
    path = tmp_path / "file.json"
    path.write_text('{"format": 1, "a": 2}')
    assert read_sealed(path, **READ, sealed_since=2) == {"format": 1, "a": 2}


def test_a_whole_file_of_another_kind_is_damaged_where_its_fields_are_read(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, {"format": 1, "name": "other"})
    document = pickle.loads(pickle.dumps(read_sealed(path, **READ)))
    assert document["name"] == "other" and document.get("files") is None and "files" not in document
    with pytest.raises(
        DamagedFileError, match=f"{re.escape(str(path))}: is not a .*no field 'files'; {READ['remedy']}"
    ):
        document["files"]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": "\xff"}', b"[" * 100_000])
def test_a_damaged_file_of_a_model_is_a_wrong_input(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.json: file of a model .*fetch the folder again"):
        model_json(tmp_path / "config.json")


def test_a_missing_file_of_a_model_is_empty_and_a_folder_in_its_place_is_not(tmp_path):
    assert model_json(tmp_path / "config.json") == {}
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        model_json(tmp_path / "config.json")
