"""kdnb.storage.files: whole files, and records that notice every changed byte."""

import json

import pytest

from kdnb.errors import InputError
from kdnb.storage.files import atomic_write, read_record, write_record

RECORD = {"parameters": {"seed": 0, "name": 'quotes " and "record_sha256": "'}, "list": [1, None, 0.5], "word": "Größe"}


def test_a_record_comes_back_as_it_was_and_is_plain_json(tmp_path):
    write_record(tmp_path / "run.json", RECORD)
    assert read_record(tmp_path / "run.json") == RECORD
    assert json.loads((tmp_path / "run.json").read_text())["parameters"]["seed"] == 0


def test_every_changed_byte_of_a_record_is_noticed(tmp_path):
    path = tmp_path / "run.json"
    write_record(path, RECORD)
    data = path.read_bytes()
    for index in range(len(data)):
        for mask in (0x01, 0x20, 0x80):
            path.write_bytes(data[:index] + bytes([data[index] ^ mask]) + data[index + 1 :])
            with pytest.raises(InputError, match="run.json"):
                read_record(path)


def test_a_copy_under_another_name_is_refused(tmp_path):
    write_record(tmp_path / "execution.json", RECORD)
    (tmp_path / "run.json").write_bytes((tmp_path / "execution.json").read_bytes())
    with pytest.raises(InputError, match="run.json is a copy of execution.json"):
        read_record(tmp_path / "run.json")


def test_text_that_is_no_unicode_survives_in_a_record(tmp_path):
    write_record(tmp_path / "run.json", {"message": "half a pair: \ud83d"})
    assert read_record(tmp_path / "run.json") == {"message": "half a pair: \ud83d"}


def test_a_half_written_file_has_no_ending_that_a_reader_looks_for(tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr("os.replace", lambda source, _: names.append(str(source)))
    atomic_write(tmp_path / "x.csv", b"1,2")
    assert names and not names[0].endswith(".csv")


def test_an_edited_record_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "run.json"
    write_record(path, RECORD)
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match="run.json is damaged or was edited: its content does not match its hash"):
        read_record(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'"record_sha256": "', b"\xff" * 100])
def test_what_is_no_record_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match="x.json"):
        read_record(tmp_path / "x.json")


def test_a_missing_record_is_refused(tmp_path):
    with pytest.raises(InputError, match="run.json can't be read"):
        read_record(tmp_path / "run.json")
