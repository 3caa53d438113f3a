import io
import json

from hypothesis import given
from hypothesis import strategies as st

from kolm_build.surfaces.terminal import Terminal, harmless, has_colour


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals_that_want_it():
    """CLI-2."""
    assert has_colour(Screen(), {"TERM": "xterm"})
    assert not has_colour(io.StringIO(), {"TERM": "xterm"})
    assert not has_colour(Screen(), {"TERM": "xterm", "NO_COLOR": "1"})
    assert not has_colour(Screen(), {"TERM": "dumb"})


def test_an_empty_no_color_asks_for_nothing():
    assert has_colour(Screen(), {"NO_COLOR": ""})


def test_answers_and_advice_go_to_different_streams():
    """CLI-1."""
    terminal = Terminal(out=io.StringIO(), err=io.StringIO())
    terminal.say("answer")
    terminal.tell("advice")
    assert (terminal.out.getvalue(), terminal.err.getvalue()) == ("answer\n", "advice\n")


def test_a_models_output_cannot_steer_a_terminal():
    """CLI-3."""
    terminal = Terminal(out=Screen(), err=Screen())
    terminal.say("\x1b]0;owned\x07 \u202egnp.exe\ttab\nline")
    assert terminal.out.getvalue() == "\\x1b]0;owned\\x07 \\u202egnp.exe\ttab\nline\n"


def test_off_a_terminal_text_is_left_alone():
    terminal = Terminal(out=io.StringIO(), err=io.StringIO())
    terminal.say("\x1b[0m")
    assert terminal.out.getvalue() == "\x1b[0m\n"


@given(st.text())
def test_harmless_text_has_no_control_characters_but_tab_and_newline(text):
    shown = harmless(text)
    assert not [
        sign for sign in shown if (sign < " " or "\x7f" <= sign < "\xa0") and sign not in "\t\n"
    ]


def test_style_is_written_only_where_colour_is():
    coloured = Terminal(out=Screen(), err=Screen(), out_colour=True)
    coloured.say("x", "green")
    coloured.tell("x", "green")
    assert coloured.out.getvalue() == "\x1b[32mx\x1b[0m\n"
    assert coloured.err.getvalue() == "x\n"


@given(st.dictionaries(st.text(), st.text() | st.integers()))
def test_json_is_one_line(value):
    terminal = Terminal(out=io.StringIO(), err=io.StringIO())
    terminal.give(value)
    text = terminal.out.getvalue()
    assert text.count("\n") == 1
    assert json.loads(text) == value
