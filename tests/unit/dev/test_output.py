from __future__ import annotations

import io
import os

from celeriac.dev.output import Console


def test_every_line_says_where_it_comes_from() -> None:
    stream = io.StringIO()
    console = Console(stream, color=False)
    console.line("api", "up")
    console.line("worker", "ready")
    console.say("stopping")
    assert stream.getvalue() == "api      | up\nworker   | ready\nceleriac | stopping\n"


def test_colour_is_in_the_prefix_alone() -> None:
    stream = io.StringIO()
    Console(stream, color=True).line("beat", "tick")
    assert stream.getvalue() == "\x1b[35mbeat     |\x1b[0m tick\n"


def test_a_reader_that_has_gone_silences_it() -> None:
    read, write = os.pipe()
    os.close(read)
    stream = io.TextIOWrapper(io.FileIO(write, "w"), write_through=True)
    console = Console(stream, color=False)
    console.line("api", "nobody hears this")
    assert console.broken
    console.line("api", "nor this")
