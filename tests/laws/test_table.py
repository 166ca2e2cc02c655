"""Tables: whatever is wrong is told by file, line and column, and what is right comes through unchanged."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armillary.laws.table import read_table
from armillary.recipe import UsageError


@pytest.fixture
def table(tmp_path):
    def of(text):
        path = tmp_path / "runs.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_table(path)

    return of


def test_columns_by_name_in_the_order_asked_for(table):
    read = table('\ufeffrun, a ,b\n"x, y",1,2.5\n\nz,3e2,-4\n')
    assert read.columns == ("run", "a", "b")
    assert read.text("run") == ["x, y", "z"]
    assert read.numbers(["b", "a"]).tolist() == [[2.5, 1.0], [-4.0, 300.0]]
    assert read.lines == [2, 4]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no lines"),
        ("a,b\n", "has no rows below its header"),
        ("a b\n1 2\n", "line 1: the columns are separated by spaces; save it with commas"),
        ("a,b\n1,2\na,b\n1,2\n", "line 3: repeated header; remove this line"),
        ("a,b\n1,2\n\0\0", "line 3 contains a zero byte"),
        (b"\x1f\x8b\x08", "is compressed with gzip; unpack it first"),
        (b"PAR1xxxx", "is a Parquet file; write it as CSV"),
        (b"PK\x03\x04xx\xff", "is an Excel workbook or a ZIP archive; save its sheet as CSV"),
        ("a,,b\n1,2,3\n", "line 1: column 2 has no name"),
        ("a,b,a\n1,2,3\n", "line 1: column 'a' appears twice"),
        ("a,b\n1,2\n3\n", "line 3 has 1 entry and the header has 2"),
        ("a,b\n1,2,3\n", "line 2 has 3 entries and the header has 2"),
        ('a,b\n1,"2\n', "line 2: unexpected end of data"),
        ("a,b\n1,浑\n".encode("gb18030"), "line 2 is not UTF-8"),
        ("a|b\n1|2\n", "line 1: the columns are separated by |; save it with commas"),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n", "line 1: the columns are separated by |"),
        ('[{"a": 1, "b": 2}]\n', "looks like JSON; write it as CSV with a header"),
        ('{"a": 1, "b": 2}\n{"a": 3, "b": 4}\n', "looks like JSON"),
    ],
)
def test_what_is_no_table(table, tmp_path, text, said):
    with pytest.raises(UsageError) as caught:
        table(text)
    assert str(tmp_path / "runs.csv") in str(caught.value) and said in str(caught.value)


@pytest.mark.parametrize("entry", ["nan", "inf", "-1e999", "", "  ", "1,0", "1_0", "x", "-3", "0"])
def test_a_bad_number_is_told_by_file_line_and_column(table, tmp_path, entry):
    read = table(f'a,loss\n1,2\n\n5,"{entry}"\n')
    with pytest.raises(UsageError) as caught:
        read.numbers(["a", "loss"], above=0)
    assert f"{tmp_path / 'runs.csv'}, line 4, column 'loss' is '{entry}'; " in str(caught.value)


def test_limits_are_told_apart(table):
    read = table("w\n0\n-1e-9\n")
    with pytest.raises(UsageError, match=r"line 3, column 'w' is '-1e-9'; it must be at least 0"):
        read.numbers(["w"], least=0)
    with pytest.raises(UsageError, match=r"line 2, column 'w' is '0'; it must be above 0"):
        read.numbers(["w"], above=0)


def test_an_unknown_column_and_a_missing_file(table, tmp_path):
    with pytest.raises(UsageError, match=r"runs\.csv has no column 'c'; its columns are a, b"):
        table("a,b\n1,2\n").numbers(["a", "c"])
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(UsageError, match="give a CSV file with a header"):
            read_table(path)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3), min_size=1, max_size=20))
def test_numbers_come_back_to_the_last_bit(table, rows):
    text = "a,b,c\n" + "".join(",".join(map(repr, row)) + "\n" for row in rows)
    assert np.array_equal(table(text).numbers(["a", "b", "c"]), np.array(rows))


SAME = [[1e7, 4.9], [1e8, 3.6]]


@pytest.mark.parametrize(
    "text",
    [
        "n,loss\n1e7,4.9\n1e8,3.6\n",
        "n;loss\n1e7;4.9\n1e8;3.6\n",
        "n\tloss\n1e7\t4.9\n1e8\t3.6\n",
        "sep=;\nn;loss\n1,0e7;4,9\n1e8;3,6\n",
        "SEP=\t\r\nn\tloss\r\n1e7\t4.9\r\n1e8\t3.6\r\n",
        "n;loss\n1,0e7;4,9\n1e8;3,6\n",
        "n;loss\n10.000.000;4,9\n100.000.000;3,6\n",
        "n,loss\r1e7,4.9\r1e8,3.6\r",
        "n,loss\r\n1e7,4.9\r\n1e8,3.6\r\n",
        "n,loss\n1e7,4.9\n1e8,3.6\n".encode("utf-16"),
        "n\tloss\n1e7\t4,9\n1e8\t3,6\n".encode("utf-16"),
        "n,loss,\n1e7,4.9,\n1e8,3.6,\n",
        "n,loss\n1e7,4.9,\n1e8,3.6,,\n",
        "# my runs, of May, all\n# more\nn,loss\n1e7,4.9\n1e8,3.6\n",
        "#n,loss\n1e7,4.9\n1e8,3.6\n",
        ",n,loss\n0,1e7,4.9\n1,1e8,3.6\n",
        "Unnamed: 0,n,loss\n0,1e7,4.9\n1,1e8,3.6\n",
        "n, loss\n\n1e7, 4.9\n   \n1e8, 3.6\n,,\n\n",
        "n,loss\n10M,4.9\n0.1B,3.6\n",
        'n,loss\n"10,000,000",4.9\n"100,000,000",3.6\n',
        "n,loss\n10_000_000,4.9\n100_000_000,3.6\n",
        "n,loss\n10 000 000,4.9\n100\u00a0000\u202f000,3.6\n",
    ],
)
def test_tables_as_programs_write_them(table, text):
    read = table(text)
    assert read.sizes(["n"])[:, 0].tolist() == [row[0] for row in SAME]
    assert read.numbers(["loss"])[:, 0].tolist() == [row[1] for row in SAME]


def test_what_has_two_meanings_is_refused(table):
    read = table("n;loss\n1e7;4,900\n1e8;3,600\n")
    with pytest.raises(
        UsageError, match=r"line 2, column 'loss' is '4,900'; it may be 4\.900 or 4900; write it without"
    ):
        read.numbers(["loss"])
    read = table("n;loss\n1.234;4,9\n1e8;3,600\n")
    with pytest.raises(UsageError, match=r"line 2, column 'n' is '1\.234'; it may be 1\.234 or 1234"):
        read.sizes(["n"])
    assert table("n;loss\n1e7;4,9\n1e8;3,600\n").numbers(["loss"])[:, 0].tolist() == [4.9, 3.6]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(alphabet='ab,;\t\n\r" .1#_', max_size=120))
def test_any_bytes_are_a_table_or_refused(table, data):
    try:
        read = table(data)
    except UsageError as error:
        assert "runs.csv" in str(error)
    else:
        assert all(len(row) == len(read.columns) for row in read.rows) and all(read.columns)
