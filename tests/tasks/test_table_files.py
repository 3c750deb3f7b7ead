"""Files given in the place of a table: each is named, with a command that makes a table of it; and separators."""

import bz2
import gzip
import io
import lzma
import shlex
import subprocess
import zipfile

import pytest

from metarun.errors import DataError, Faults, MissingDataError, listed
from metarun.tasks.tables import read_table

TEXT = "subject,dose,who\n" + "".join(f"s{row},{row},jürg\n" for row in range(9))


def zipped(**members: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), text)
    return content.getvalue()


def problem(path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        read_table(path, ",")
    return str(error.value)


OTHERS = {
    "gzip": (gzip.compress(TEXT.encode()), "is packed by gzip"),
    "bzip2": (bz2.compress(TEXT.encode()), "is packed by bzip2"),
    "xz": (lzma.compress(TEXT.encode()), "is packed by xz"),
    "zip": (zipped(readme_md="no", a_csv=TEXT), "is a zip archive of a.csv"),
    "UTF-16 with a mark": (TEXT.encode("utf-16"), "is text in UTF-16."),
    "UTF-16LE": (TEXT.encode("utf-16-le"), "is text in UTF-16LE, as it seems, without a byte order mark"),
    "UTF-16BE": (TEXT.encode("utf-16-be"), "is text in UTF-16BE, as it seems, without a byte order mark"),
    "Chinese": (TEXT.replace("jürg", "一中文").encode("utf-16-le"), "is text in UTF-16LE, as it seems"),
    "UTF-32": (TEXT.encode("utf-32"), "is text in UTF-32"),
    "Windows": (TEXT.encode("cp1252"), "line 2 is not UTF-8 (byte 0xfc). Save the file as UTF-8."),
}


@pytest.mark.parametrize(("content", "what"), OTHERS.values(), ids=OTHERS)
def test_the_command_of_the_message_makes_a_table_of_the_file(content, what, tmp_path):
    said = problem(tmp_path / "my table.csv", content)
    assert what in said
    command = said.rpartition(": ")[2]
    if not (tool := subprocess.run(["which", command.split()[0]], capture_output=True, check=False)).stdout:
        pytest.skip(f"{tool.args[1]} is not installed")
    subprocess.run(command, shell=True, check=True)
    made = read_table(tmp_path / "my table_1.csv", ",")
    assert made.column("dose") == [str(row) for row in range(9)] and len({*made.column("who")}) == 1


@pytest.mark.parametrize(
    ("name", "content", "what", "call"),
    [
        ("t.parquet", b"PAR1\0\0", "a parquet file", "read_parquet(sys.argv[1])"),
        ("t.feather", b"ARROW1\0\0", "a feather file", "read_feather(sys.argv[1])"),
        ("t.xlsx", zipped(xl__workbook_xml="", xl__a_txt=""), "a workbook", "read_excel(sys.argv[1])"),
        ("t.json", b'[{"subject": 1}]', "a file of JSON", "read_json(sys.argv[1])"),
        ("t.jsonl", b'{"subject": 1}\n{"subject": 2}', "lines of JSON", "read_json(sys.argv[1], lines=True)"),
    ],
)
def test_a_table_of_another_program_is_named_with_the_call_of_pandas(name, content, what, call, tmp_path):
    said = problem(tmp_path / name, content)
    command = f"pandas.{call}.to_csv(sys.argv[2], index=False)"
    assert what in said
    words = shlex.split(said.rpartition("): ")[2])
    assert words == ["python", "-c", f"import pandas, sys; {command}", str(tmp_path / name), str(tmp_path / "t.csv")]


def test_other_files_that_are_no_tables_are_named(tmp_path):
    assert said_of(tmp_path, b"<!DOCTYPE html>\n<p>") == "is a web page."
    assert "line 2 holds a NUL" in problem(tmp_path / "t.csv", b"a,b\n1,\0\n")
    assert "is a pointer of Git LFS" in problem(
        tmp_path / "t.csv", b"version https://git-lfs.github.com/spec/v1\noid\n"
    )
    assert "is a tar archive" in problem(tmp_path / "t.tar.gz", gzip.compress(b"anything"))
    assert "is a zip archive, or a workbook, that is not whole" in problem(tmp_path / "t.zip", b"PK\3\4")


def said_of(tmp_path, content: bytes) -> str:
    return problem(tmp_path / "t.csv", content).removeprefix(f"{tmp_path / 't.csv'} ").partition(" Download")[0]


def test_a_folder_and_a_missing_file_are_answered_by_the_tables_there(tmp_path):
    (tmp_path / "growth.csv").write_text(TEXT)
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(DataError, match=rf"is a folder, but a table is one file. Name .*: {tmp_path}/growth.csv\. "):
        read_table(tmp_path, ",")
    with pytest.raises(MissingDataError, match=r"grow.csv', but there is no such file; did you mean 'growth.csv'\?"):
        read_table(tmp_path / "grow.csv", ",")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"It holds none that ends with .csv, .tsv"):
        read_table(tmp_path / "empty", ",")


# ---- the separator ----


@pytest.mark.parametrize("first", ["sep=;\n", "SEP=;\r\n", '"sep=;"\n'])
def test_a_first_line_says_the_separator_as_for_excel(first, tmp_path):
    (tmp_path / "t.csv").write_bytes((first + TEXT.replace(",", ";")).encode())
    found = read_table(tmp_path / "t.csv", ",")
    assert found.header == ["subject", "dose", "who"] and found.separator == ";" and found.lines[:2] == [3, 4]


def test_a_wrong_first_line_is_to_be_corrected_for_no_setting_would_help(tmp_path):
    assert "line 1 says sep=|: correct it" in problem(tmp_path / "t.csv", f"sep=|\n{TEXT}".encode())


def test_another_separator_is_found_by_the_names_below_comments(tmp_path):
    (tmp_path / "t.csv").write_text("# in mg\n" + TEXT.replace(",", ";"))
    assert read_table(tmp_path / "t.csv", ",", ["dose", "who"]).separator == ";"
    assert read_table(tmp_path / "t.csv", "\\t", ["dose", "who"]).separator == ";"


# ---- long values ----


def test_long_values_and_many_columns_are_shortened_in_messages(tmp_path):
    assert len(listed(["x" * 5000, "y"])) < 400
    faults = Faults()
    faults.add("t.jsonl", f"line 3: 'text' is {['x' * 5000]!r}, but must be a string", "Put it in quotation marks.")
    with pytest.raises(DataError) as error:
        faults.refuse()
    said = str(error.value)
    assert len(said) < 450 and said.startswith("t.jsonl, line 3: 'text' is ['xxx")
    assert said.endswith("xx'], but must be a string. Put it in quotation marks.")
    assert len(problem(tmp_path / "t.csv", b"a;" + b"x" * 5000 + b"\n1\n")) < 400
    (tmp_path / "t.csv").write_text(",".join(f"c{i}" for i in range(3000)) + "\n" + ",".join("1" * 3000))
    assert "(and 2980 more)" in read_table(tmp_path / "t.csv", ",").without("dose")
