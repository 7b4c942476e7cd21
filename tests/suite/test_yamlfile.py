import pytest

from zsqbench.errors import ZSQBenchError
from zsqbench.suite.yamlfile import YamlFile


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "x.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return YamlFile(path)

    return read


@pytest.fixture
def refusal(read, tmp_path):
    """The one line that is said of a file, without the folder."""

    def refusal(text):
        with pytest.raises(ZSQBenchError) as error:
            read(text)
        line = str(error.value).replace(f"{tmp_path}/", "")
        assert len(line.splitlines()) == 1, line
        return line

    return refusal


def test_plain_data_is_read(read):
    text = "a: [1, 2.5, true, null, x]\nb: {c: 'text'}\n"
    assert read(text).data == {"a": [1, 2.5, True, None, "x"], "b": {"c": "text"}}


def test_an_empty_file_is_nothing(read):
    assert None is read("").data


def test_a_byte_order_mark_and_windows_line_ends_are_read(read):
    assert read(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n").data == {"a": 1, "b": 2}


def test_a_date_is_text(read):
    assert read("a: 2024-01-01").data == {"a": "2024-01-01"}


def test_a_date_that_there_is_not_is_text(read):
    assert read("a: 2024-13-45").data == {"a": "2024-13-45"}


def test_a_key_is_text_whatever_it_looks_like(read):
    assert read("1: a\nyes: b\n1.5: c\n2024-01-01: d").data == {"1": "a", "yes": "b", "1.5": "c", "2024-01-01": "d"}


def test_an_alias_is_what_it_stands_for(read):
    assert read("a: &x [1]\nb: *x").data == {"a": [1], "b": [1]}


def test_every_value_has_its_line(read):
    file = read("a:\n  b:\n    - 1\n    - 2\n")
    lines = [file.where(place).rpartition(":")[2] for place in [("a",), ("a", "b"), ("a", "b", 0), ("a", "b", 1)]]
    assert lines == ["1", "2", "3", "4"]


def test_a_place_that_is_not_there_has_the_line_of_what_is_around_it(read):
    assert read("a:\n  b: 1\n").where(("a", "b", "c", 3)).endswith("x.yaml:2")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ZSQBenchError, match=r"cannot read .*nothing\.yaml: No such file or directory"):
        YamlFile(tmp_path / "nothing.yaml")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ZSQBenchError, match="Is a directory"):
        YamlFile(tmp_path)


def test_a_tab_is_named(refusal):
    assert refusal("a:\n\tb: 1\n") == "x.yaml:2: a tab; YAML is indented with spaces"


def test_a_tab_that_is_not_to_blame_is_not_blamed(refusal):
    assert "tab" not in refusal("a: [1, 2 # one\ttwo\nb: 3")


def test_a_duplicate_key_names_both_lines(refusal):
    assert refusal("a: 1\nb: 2\na: 3") == "x.yaml:3: duplicate key 'a'; it is first in line 1"


def test_a_duplicate_key_further_down_is_found(refusal):
    assert refusal("a:\n- {c: 1,\n   c: 2}") == "x.yaml:3: duplicate key 'c'; it is first in line 2"


@pytest.mark.parametrize(
    "text", ["a: [1, 2", "a: {b: 1", "a: 'b", "a: b: c", "a: *nowhere", "a: @b", "--- 1\n--- 2", "a: |2\n x"]
)
def test_what_is_no_yaml_is_refused_with_its_line(refusal, text):
    assert refusal(text).startswith("x.yaml:")


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!unknown x",
        "a: =",
        "!!int x",
        "!!float x",
    ],
)
def test_a_tag_that_makes_no_plain_data_is_refused_with_its_line(refusal, text):
    assert refusal(f"a: 1\nb: {text}").startswith("x.yaml:2")


def test_bytes_are_no_plain_data(refusal):
    assert refusal("a: 1\nb: !!binary aGVsbG8=").startswith("x.yaml:2")


@pytest.mark.parametrize("number", ["0x_", "0b_", "9" * 5000])
def test_a_number_that_python_cannot_read_is_refused_with_its_line(refusal, number):
    assert refusal(f"a: 1\nb: {number}").startswith("x.yaml:2")


def test_a_key_that_is_a_list_is_refused(refusal):
    assert refusal("a: 1\n? [1, 2]\n: 3") == "x.yaml:2: a key must be a plain word"


def test_an_alias_bomb_is_refused(refusal):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert "is an alias repeated without end?" in refusal("\n".join(lines))


def test_a_value_that_holds_itself_is_refused(refusal):
    assert refusal("a: &x [*x]").startswith("x.yaml")


def test_a_file_that_is_nested_too_deeply_is_refused(refusal):
    assert refusal("a: " + "[" * 1500 + "]" * 1500).startswith("x.yaml")


def test_text_in_another_encoding_is_refused(refusal):
    assert refusal("a: caf\xe9".encode("latin-1")) == "x.yaml is not a text file in UTF-8 (byte 6)"


def test_a_control_character_is_refused(refusal):
    assert refusal(b"a: \x00").startswith("x.yaml: ")


def test_a_binary_file_is_refused(refusal):
    assert refusal(bytes(range(256))).startswith("x.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-7", 3e-7),
        ("1E5", 1e5),
        ("-2.e3", -2e3),
        (".5e+1", 5.0),
        ("1.0e30", 1e30),
        ("'3e-7'", "3e-7"),
        ("1e", "1e"),
        ("e5", "e5"),
    ],
)
def test_numbers_with_an_exponent_are_numbers_as_people_write_them(tmp_path, text, value):
    file = tmp_path / "a.yaml"
    file.write_text(f"x: {text}\n")
    assert YamlFile(file).data == {"x": value}
