"""What is wrong in a source is told with file and line, and what is good is read."""

import gzip
import json
import os

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from armillary.corpus import sources
from armillary.corpus.find import READERS, find_files
from armillary.corpus.problems import Problem, ProblemList
from armillary.corpus.sources import read_documents
from armillary.recipe import ArmillaryError, DomainSpec, UsageError


def read(source, text_field="text"):
    """Texts and problems of a source."""
    files, problems = find_files("d", DomainSpec(source=str(source)))
    found = [item for file in files for item in read_documents(file, text_field)]
    texts = [item for item in found if not isinstance(item, Problem)]
    return texts, [p.message for p in [*problems, *found] if isinstance(p, Problem)]


LINES = (
    b'\xef\xbb\xbf{"text": "one", "n": 1}\n'
    b"not json\n"
    b"\n"
    b'{"text": "\xff"}\r\n'
    b'{"txt": "three"}\n'
    b'{"text": 4}\n'
    b'["five"]\n'
    b'{"text": " \\n "}\n'
    b'{"text": "\\ud800"}\n'
    b'{"text": "caf\\u00e9 \xe5\xa4\xa9\\r\\nend"}'
)
WRONG = [
    ":2: not JSON",
    ":4: not UTF-8 (byte 0xff)",
    ":5: no field 'text'; it has txt; set the domain's text_field",
    ":6: the field 'text' is int, not text",
    ":7: a list, not a JSON object",
    ":8: empty",
    ":9: a lone surrogate",
]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines(tmp_path, suffix):
    file = tmp_path / f"lines.jsonl{suffix}"
    with pa.output_stream(str(file), compression={"": None, ".gz": "gzip", ".zst": "zstd"}[suffix]) as stream:
        stream.write(LINES)
    texts, problems = read(file)
    assert texts == ["one", "café 天\nend"]
    assert len(problems) == len(WRONG)
    for problem, wrong in zip(problems, WRONG, strict=True):
        assert problem.startswith(f"{file}{wrong}")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_breaks_off_gives_what_came_before(tmp_path, suffix):
    file = tmp_path / f"lines.jsonl{suffix}"
    lines = b"".join(b'{"text": "%s"}\n' % os.urandom(30).hex().encode() for _ in range(20_000))
    with pa.output_stream(str(file), compression={".gz": "gzip", ".zst": "zstd"}[suffix]) as stream:
        stream.write(lines)
    file.write_bytes(file.read_bytes()[:-200_000])
    texts, problems = read(file)
    assert 0 < len(texts) < 20_000
    assert texts == [json.loads(line)["text"] for line in lines.splitlines()[: len(texts)]]
    assert "compressed data is damaged" in problems[-1]


def test_concatenated_gzip_members_are_one_file(tmp_path):
    file = tmp_path / "lines.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "a"}\n') + gzip.compress(b'{"text": "b"}\n'))
    assert read(file) == (["a", "b"], [])


def test_text_files(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.md").write_bytes(b"\xef\xbb\xbf# title\r\n\r\ntext\r\n")
    (tmp_path / "b.txt").write_bytes(b"line\nline\n\xe4\xa9")
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.txt").write_bytes(b" \n")
    (tmp_path / "e.PY").write_bytes(b"x = 1\n")
    (tmp_path / ".hidden").write_bytes(b"x")
    (tmp_path / "page.html").write_bytes(b"x")
    (tmp_path / "two.html").write_bytes(b"x")
    texts, problems = read(tmp_path)
    assert texts == ["line\nline\n", "# title\n\ntext\n", "x = 1\n"]
    assert problems == [
        f"{tmp_path}: hidden or temporary, not read: 1 (.hidden)",
        f"{tmp_path}: skipped files of other kinds (2 .html); read: {', '.join(READERS)}",
        f"{tmp_path}/b.txt:3: not UTF-8 (byte 0xe4); 1 line with 2 bytes skipped; save the text as UTF-8",
        f"{tmp_path}/c.txt:1: the file is empty",
        f"{tmp_path}/d.txt:1: empty",
    ]


def test_a_huge_text_file_is_taken_in_blocks_that_end_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TEXT_BLOCK", 10)
    file = tmp_path / "a.txt"
    file.write_bytes("天地玄黄\n宇宙洪荒\nlast\n".encode() + b"\xff broken line\n" + b"good again\n")
    texts, problems = read(file)
    assert texts == ["天地玄黄\n", "宇宙洪荒\n", "last\n", "good again\n"]
    assert [isinstance(text, sources.Continuation) for text in texts] == [False, True, True, True]
    assert problems == [f"{file}:4: not UTF-8 (byte 0xff); 1 line with 14 bytes skipped; save the text as UTF-8"]


def test_parquet(tmp_path):
    pq.write_table(pa.table({"content": ["one", None, "", "天"], "n": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no parquet")
    texts, problems = read(tmp_path, "content")
    assert texts == ["one", "天"]
    assert problems[:2] == [
        f"{tmp_path}/a.parquet:2: the field 'content' is null, not text",
        f"{tmp_path}/a.parquet:3: empty",
    ]
    assert problems[2].startswith(f"{tmp_path}/b.parquet:1: not a complete Parquet file")
    _, problems = read(tmp_path / "a.parquet", "contents")
    assert problems == [f"{tmp_path}/a.parquet:1: no column 'contents'; it has content; set the domain's text_field"]


def test_urls_are_read_through_fsspec():
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/b.jsonl", b'{"text": "two"}\n')
    memory.pipe("/corpus/a.txt", b"one")
    assert read("memory://corpus") == (["one", "two"], [])
    assert read("memory://corpus/b.jsonl") == (["two"], [])


class ServiceError(Exception):
    """As the libraries of file systems raise their own, which are not OSErrors."""


@pytest.mark.parametrize("method", ["find", "isdir", "open"])
def test_a_service_that_fails_is_named_with_its_own_words(method, monkeypatch):
    def fail(*_, **__):
        raise ServiceError("host:9 refused the connection")

    memory = fsspec.filesystem("memory")
    memory.pipe("/service/a.txt", b"one")
    monkeypatch.setattr(type(memory), method, fail)
    where = "memory://service/none" if method == "isdir" else "memory://service"
    with pytest.raises(ArmillaryError, match=r"memory:///?service.*host:9 refused the connection.*try again") as caught:
        read(where)
    assert not isinstance(caught.value, UsageError)


def test_a_file_within_an_archive_is_refused(tmp_path):
    with pytest.raises(UsageError, match="files within an archive are not read; unpack it"):
        read(f"zip://a.txt::{tmp_path}/a.zip")


def test_sources_that_hold_nothing(tmp_path):
    (tmp_path / "texts").mkdir()
    with pytest.raises(UsageError, match=r"domain 'd': source .*text: does not exist; did you mean 'texts'\?"):
        read(tmp_path / "text")
    with pytest.raises(UsageError, match=f"does not exist, nor does its folder {tmp_path}/no"):
        read(tmp_path / "no" / "way")
    with pytest.raises(UsageError, match="the folder is empty"):
        read(tmp_path / "texts")
    (tmp_path / "texts" / "a.docx").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"no file of a known kind; these are read: \.txt"):
        read(tmp_path / "texts")
    with pytest.raises(UsageError, match="nosuch"):
        read("nosuch://bucket/path")


def numbered(numbers):
    return b"".join(b'{"text": "note %d"}\n' % n for n in numbers)


def notes(numbers):
    return [f"note {n}" for n in numbers]


def test_a_damaged_gzip_member_costs_itself_and_the_next_is_read(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    first, second, third = (gzip.compress(numbered(range(n, n + 200))) for n in (0, 200, 400))
    broken = second[:300] + bytes([second[300] ^ 255, second[301] ^ 255]) + second[302:]
    file.write_bytes(first + b"\0" * 512 + broken + third)
    texts, problems = read(file)
    assert texts[:200] == notes(range(200)) and texts[-200:] == notes(range(400, 600))
    assert f"{file}:" in problems[0] and "compressed data is damaged" in problems[0]


def test_a_wrong_checksum_at_the_end_costs_no_line(tmp_path):
    data = bytearray(gzip.compress(numbered(range(50))))
    data[-6] ^= 255
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    texts, problems = read(tmp_path / "a.jsonl.gz")
    assert texts == notes(range(50)) and len(problems) == 1


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_the_content_and_not_the_name_says_how_it_is_compressed(tmp_path, suffix):
    for i, data in enumerate((numbered(range(9)), gzip.compress(numbered(range(9))))):
        (tmp_path / f"{i}.jsonl{suffix}").write_bytes(data)
        assert read(tmp_path / f"{i}.jsonl{suffix}") == (notes(range(9)), [])


def test_zstandard_frames_skippable_frames_and_a_long_window(tmp_path):
    long = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    skippable = (0x184D2A50).to_bytes(4, "little") + (8).to_bytes(4, "little") + bytes(8)
    compressors = [zstandard.ZstdCompressor(), zstandard.ZstdCompressor(compression_params=long)]
    frames = [c.compressobj() for c in compressors]
    frames = [f.compress(numbered(range(n, n + 9))) + f.flush() for f, n in zip(frames, (0, 9), strict=True)]
    (tmp_path / "a.jsonl.zst").write_bytes(skippable + frames[0] + skippable + frames[1])
    assert read(tmp_path) == (notes(range(18)), [])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_bytes('{"text": "one 天"}\n{"text": "two"}\n'.encode(encoding))
    (tmp_path / "b.txt").write_bytes("text 天\n".encode(encoding))
    assert read(tmp_path) == (["one 天", "two", "text 天\n"], [])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "a"}{"text": "b"} {"text": "c"}', ["a", "b", "c"]),
        ('[\n{"text": "a"},\n{"text": "b"}\n]', ["a", "b"]),
        ('[{"text": "a"}, {"text": "b"}]', ["a", "b"]),
        ('{"text": "a", "n": %s}' % ("9" * 5000), ["a"]),
        ('{"text": "a", "text": "b", "n": NaN}', ["b"]),
        ('{"text": "a"}\r{"text": "b"}\r\n', ["a", "b"]),
        ('{"text": "a\\u0000b \u2028 c"}', ["a\0b \u2028 c"]),
    ],
)
def test_odd_lines_that_hold_text(tmp_path, line, expected):
    (tmp_path / "a.jsonl").write_text(line, newline="")
    assert read(tmp_path) == (expected, [])


@pytest.mark.parametrize(
    "line",
    ['{"text": ' + "[" * 200_000, "{'text': 'a'}", '{"text": "a", }', "null", "12", '"a"', '{"text": ["a"]}', "{}"],
)
def test_odd_lines_that_hold_none_are_a_problem_with_their_place(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "before"}}\n{line}\n{{"text": "after"}}\n')
    texts, problems = read(tmp_path)
    assert texts == ["before", "after"]
    assert [p.partition(": ")[0] for p in problems] == [f"{tmp_path}/a.jsonl:2"]


def test_a_bad_byte_costs_its_line_and_in_a_long_line_itself(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"line\n" * 500 + b"caf\xe9 here\n" + b"line\n" * 500)
    (tmp_path / "b.txt").write_bytes(b"word " * 2000 + b"\xe9" + b"word " * 2000)
    (tmp_path / "c.txt").write_bytes("ligne é\n".encode("latin-1") * 40)
    texts, problems = read(tmp_path)
    assert texts == ["line\n" * 1000, "word " * 4000]
    assert problems == [
        f"{tmp_path}/a.txt:501: not UTF-8 (byte 0xe9); 1 line with 10 bytes skipped; save the text as UTF-8",
        f"{tmp_path}/b.txt:1: not UTF-8 (byte 0xe9); 1 line with 1 byte skipped; save the text as UTF-8",
        f"{tmp_path}/c.txt:1: not UTF-8 (byte 0xe9), nor are 40 of the 40 lines; save the text as UTF-8",
    ]


def test_a_damaged_row_group_costs_its_rows(tmp_path):
    file = tmp_path / "a.parquet"
    texts = [os.urandom(40).hex() for _ in range(300)]
    table = pa.table({"text": texts})
    pq.write_table(table, file, row_group_size=100, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found, problems = read(file)
    assert found == texts[:100] + texts[200:]
    assert problems[0].startswith(f"{file}:101: damaged") and "100 rows are lost" in problems[0]


def test_an_empty_package_marker_is_not_a_problem(tmp_path):
    (tmp_path / "__init__.py").touch()
    (tmp_path / "a.py").write_text("x = 1\n")
    assert read(tmp_path) == (["x = 1\n"], [])


def test_problems_of_one_kind_are_one_line():
    problems = ProblemList()
    for i in range(60):
        problems.add(Problem(f"{i}.txt:1", "the file is empty"))
    problems.add(Problem("a.jsonl:7", "not JSON", " (what)"))
    assert problems.lines() == [
        "0.txt:1: the file is empty (60 like this, the next at 1.txt:1)",
        "a.jsonl:7: not JSON (what)",
    ]
    assert problems.count == 61
