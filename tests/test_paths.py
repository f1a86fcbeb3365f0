"""A name from outside stays inside its folder."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.paths import UnsafeName, checked_name, escaped, inside

PARTS = st.sampled_from(["", ".", "..", "a", "b.c", " ", "~", "C:", "..a", "猫", "\0", "\n"])


@given(st.one_of(st.text(), st.lists(PARTS, min_size=1).map("/".join)))
def test_a_name_stays_inside_or_is_refused(name: str) -> None:
    """Whatever the text: the path is below the folder by its text alone, or there is an error."""
    try:
        checked = checked_name(name)
    except UnsafeName:
        return
    path = PurePosixPath("/folder") / checked
    assert path.parts[:2] == ("/", "folder")
    assert ".." not in path.parts
    assert len(path.parts) == 2 + checked.count("/") + 1
    assert str(path) == f"/folder/{name}"


@pytest.mark.parametrize("name", ["a", "a/b.json", "..a", "a..", "a b", "猫/犬.jpg", "~", "-", "a\u202f\u00a0\u3000b"])
def test_usual_names_are_taken_as_they_are(name: str) -> None:
    """What people name their files is no reason to refuse them."""
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "../a", "a/./b", "a\0b", "a\nb", "a\u2028b", "a\u202eb"]
)
def test_a_name_that_is_none_is_refused_and_shown(name: str) -> None:
    """The error has the name, in one line."""
    with pytest.raises(UnsafeName) as caught:
        checked_name(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_is_shown_as_it_is_but_for_what_moves_the_cursor() -> None:
    """Any kind of space is shown; a line's end, an escape, a change of direction and half a letter are not."""
    assert escaped("a\u00a0b\u3000猫") == "a\u00a0b\u3000猫"
    assert escaped("a\nb\x1b[2J\u202e\u2028\ud800") == r"a\nb\x1b[2J\u202e\u2028\ud800"


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    """A link inside the folder may point inside, and not outside."""
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    (folder / "real").mkdir(parents=True)
    outside.mkdir()
    (folder / "in").symlink_to("real")
    (folder / "out").symlink_to(outside)
    assert inside(folder, "in/a") == folder / "in" / "a"
    with pytest.raises(UnsafeName, match="leads out"):
        inside(folder, "out/a")
