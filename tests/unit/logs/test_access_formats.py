"""The lines of the access log: gunicorn's atoms side by side with gunicorn, and what a client cannot do."""

from __future__ import annotations

import base64
import datetime
import json
import os
import re
import time
import types
from typing import Any, ClassVar

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger, SafeAtoms
from hypothesis import given
from hypothesis import strategies as st

from wsgiserv.config.log_formats import COMBINED
from wsgiserv.errors import ConfigError
from wsgiserv.logs.escape import escape, escape_keeping_lines, escape_quoted
from wsgiserv.logs.format import ATOMS, Atoms, atoms_for, check_format, compile_format, format_advice, template_of

ENVIRON: dict[str, Any] = {
    "REMOTE_ADDR": "192.0.2.7",
    "REMOTE_PORT": "4711",
    "REQUEST_METHOD": "GET",
    "RAW_URI": "/things/7?x=1&y=2",
    "PATH_INFO": "/things/7",
    "QUERY_STRING": "x=1&y=2",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "CONTENT_TYPE": "text/plain",
    "HTTP_HOST": "example.org",
    "HTTP_REFERER": "https://example.org/",
    "HTTP_USER_AGENT": "curl/8.5.0",
    "HTTP_X_FORWARDED_FOR": "198.51.100.1, 198.51.100.2",
    "HTTP_AUTHORIZATION": "Basic " + base64.b64encode(b"alice:s3:cret").decode(),
    "wsgi.url_scheme": "https",
    "wsgiserv.request_id": "0123456789abcdef",
}
REQUEST_HEADERS = [
    ("HOST", "example.org"),
    ("CONTENT-TYPE", "text/plain"),
    ("X-FORWARDED-FOR", "198.51.100.1, 198.51.100.2"),
]
HEADERS = [("Content-Type", "text/html"), ("X-Twice", "one"), ("x-twice", "two")]


def line(
    template: str,
    environ: dict[str, Any] = ENVIRON,
    status: int = 200,
    headers: list[tuple[str, str]] = HEADERS,
    sent: int = 1234,
    duration: float = 3.004567,
) -> str:
    lines: list[bytes] = []
    assert compile_format(template, lines.append)(environ, status, headers, sent, duration) is None
    assert len(lines) == 1
    return lines[0].decode()


def gunicorns(template: str, environ: dict[str, Any] = ENVIRON, sent: int = 1234) -> str:
    response = types.SimpleNamespace(status="200 OK", headers=HEADERS, sent=sent)
    request = types.SimpleNamespace(headers=REQUEST_HEADERS)
    took = datetime.timedelta(seconds=3.004567)
    atoms = Logger(Config()).atoms(response, request, environ, took)
    return template % SafeAtoms(atoms)


class TestAgainstGunicorn:
    @pytest.mark.parametrize(
        "atom",
        [
            *(atom for atom in ATOMS if atom not in "ti"),  # t in the next test; i is ours
            "{host}i",
            "{Content-Type}i",
            "{x-forwarded-for}i",
            "{missing}i",
            "{content-type}o",
            "{X-TWICE}o",
            "{missing}o",
            "{REMOTE_PORT}e",
            "{remote_port}e",
            "{wsgi.url_scheme}e",
            "{WSGI.URL_SCHEME}e",
            "{missing}e",
        ],
    )
    def test_atom(self, atom: str) -> None:
        expected = gunicorns(f"%({atom})s")
        assert line(f"%({atom})s") == expected
        assert f"%({atom})s" % Atoms(ENVIRON, 200, HEADERS, 1234, 3.004567) == expected

    def test_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # gunicorn asks strftime(), which reads the coarse clock: that is some milliseconds late.
        coarse = getattr(time, "CLOCK_REALTIME_COARSE", time.CLOCK_REALTIME)
        monkeypatch.setattr("wsgiserv.logs.format.time", lambda: time.clock_gettime(coarse))
        before, ours, after = gunicorns("%(t)s"), line("%(t)s"), gunicorns("%(t)s")
        assert ours in (before, after)

    def test_default_format(self) -> None:
        drop_time = re.compile(r"\[[^]]*\]")
        template = Config().access_log_format
        assert template == COMBINED
        assert drop_time.sub("", line("combined")) == drop_time.sub("", gunicorns(template))

    def test_nothing_sent(self) -> None:
        assert line("%(b)s %(B)s", sent=0) == gunicorns("%(b)s %(B)s", sent=0) == "0 0"

    @pytest.mark.parametrize("template", ["%(s)s%%", "%(D)d", "%(T)5d|", "%(h)-15s|", "%(m)r", "{%(s)s} 'x' {{}}"])
    def test_layouts(self, template: str) -> None:
        assert line(template) == gunicorns(template)


class TestTemplates:
    def test_request_id(self) -> None:
        assert line("%(i)s %({wsgiserv.request_id}e)s") == "0123456789abcdef 0123456789abcdef"

    @pytest.mark.parametrize(
        ("template", "names"),
        [
            ("%s", "character 1"),
            ("%(z)d", "%(z)d"),
            ("ok %(h)s 100%", "character 13"),
            ("%(h", "character 1"),
            ("%(h)", "character 1"),
            ("%(h)*d", "character 1"),
            ("%(h)d", "%(h)d"),
            ("%(r)5.2f", "%(r)5.2f"),
        ],
    )
    def test_bad_ones_are_named(self, template: str, names: str) -> None:
        for use in (check_format, lambda text: compile_format(text, [].append)):
            with pytest.raises(ConfigError) as caught:
                use(template)
            assert names in str(caught.value)
            assert "access_log_format" in str(caught.value)
            assert "combined" in str(caught.value)

    @pytest.mark.parametrize("template", ["%(z)s", "%(host)s|", "%({x}z)s", "%({}i)s", "%()s", "%(s)s %(z)5s|%(z)r"])
    def test_atoms_that_do_not_exist_are_dashes(self, template: str) -> None:
        assert line(template) == gunicorns(template)
        [name] = set(re.findall(r"%\(.*?\)", template)) - {"%(s)"}
        assert format_advice(template).startswith(f"WS1830 access_log_format: there is no atom {name}s: a dash")

    def test_they_are_dashes_in_json_and_in_a_line_to_escape_too(self) -> None:
        assert (
            line('{"a": "%(z)5s", "p": "%(U)s"}', {**ENVIRON, "PATH_INFO": '/"'}) == '{"a": "    -", "p": "/\\u0022"}'
        )
        assert line("%(z)s %(U)s", {**ENVIRON, "PATH_INFO": "/\n"}) == r"- /\x0a"

    @pytest.mark.parametrize("template", ["common", "combined", "json", "", "plain text", "100%% %(s)s"])
    def test_good_ones(self, template: str) -> None:
        check_format(template)
        line(template)

    def test_literal_text_is_kept(self) -> None:
        template = "\t{%(s)s}\\ \"%(m)s\" 'é' \u2028 ${x} {status}"
        assert line(template) == "\t{200}\\ \"GET\" 'é' \u2028 ${x} {status}"

    def test_time_is_refreshed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [1000.0]
        monkeypatch.setattr("wsgiserv.logs.format.time", lambda: clock[0])
        lines: list[bytes] = []
        log = compile_format("%(t)s", lines.append)
        for clock[0] in (1000.0, 1000.9, 1001.0, 5000.0, 999.5):
            log({}, 200, [], 0, 0.0)
        assert lines[0] == lines[1]
        assert len(set(lines)) == 4  # a clock that was set back shows, too

    def test_pid_is_the_process_that_logs(self) -> None:
        lines: list[bytes] = []
        log = compile_format("%(p)s", lines.append)
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            log({}, 200, [], 0, 0.0)
            os.write(writer, lines[0])
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        assert os.read(reader, 100) == b"<%d>" % child
        os.close(reader)


class TestRefusedRequests:
    @pytest.mark.parametrize(
        "template", ["common", "combined", *(f"%({a})s" for a in ATOMS), "%({a}i)s %({a}e)s %({a}o)s"]
    )
    def test_nothing_is_known(self, template: str) -> None:
        text = line(template, {}, 400, [], 0, 0.0)
        assert text
        assert "None" not in text

    def test_missing_is_a_dash(self) -> None:
        text = line("combined", {}, 400, [], 0, 0.0)
        assert re.fullmatch(r'- - - \[[^]]+\] "-" 400 0 "-" "-"', text)

    def test_what_is_known_is_there(self) -> None:
        assert line('%(h)s "%(r)s"', {"REMOTE_ADDR": "::1", "REQUEST_METHOD": "GET"}) == '::1 "GET - -"'

    def test_a_unix_peer_has_no_address(self) -> None:
        assert line("%(h)s", {**ENVIRON, "REMOTE_ADDR": ""}) == "-"


class TestHostileClients:
    @pytest.mark.parametrize(
        "key", ["HTTP_USER_AGENT", "HTTP_REFERER", "RAW_URI", "REQUEST_METHOD", "SERVER_PROTOCOL", "REMOTE_ADDR"]
    )
    @pytest.mark.parametrize(
        ("value", "written"),
        [
            ('a" 200 1 "-" "forged', r"a\x22 200 1 \x22-\x22 \x22forged"),
            ("a\r\n127.0.0.1 - - forged", r"a\x0d\x0a127.0.0.1 - - forged"),
            ("\x1b[2J\x00\x7f", r"\x1b[2J\x00\x7f"),
            ("end\\", r"end\x5c"),
            ("caf\xc3\xa9 \x9b\x85", r"caf\xc3\xa9 \x9b\x85"),
        ],
    )
    def test_combined(self, key: str, value: str, written: str) -> None:
        text = line("combined", {**ENVIRON, key: value})
        assert written in text
        assert text.isascii()
        assert text.isprintable()
        assert text.count('"') == 6

    def test_user(self) -> None:
        def user(text: str) -> str:
            return line("%(u)s", {**ENVIRON, "HTTP_AUTHORIZATION": text})

        def basic(pair: bytes) -> str:
            return "Basic " + base64.b64encode(pair).decode()

        assert user(basic(b"alice:secret")) == "alice"
        assert user(basic(b"alice")) == "alice"
        assert user("BASIC   " + basic(b"bob:x")[6:]) == "bob"
        assert user(basic(b'a\n"b\xff:x')) == r"a\x0a\x22b\xff"
        for garbage in (
            "",
            "Basic",
            "Basic ",
            "Basic !!!",
            "Basic YQ=",
            "Basic \xe9\xe9",
            "Bearer abc",
            "Basicabc",
            basic(b":x"),
        ):
            assert user(garbage) == "-", garbage

    def test_objects_in_the_environ(self) -> None:
        class Bad:
            def __str__(self) -> str:
                raise RuntimeError

        assert line("%({x}e)s", {"x": Bad()}) == "-"
        assert line("%({x}e)s", {"x": 5}) == "5"
        assert line("%({x}e)s", {"x": "\u20ac"}) == r"\xe2\x82\xac"
        assert line("%({x}e)s", {"x": "\ud800"}).isascii()
        assert line("%(a)s", {"HTTP_USER_AGENT": None}).isprintable()

    @given(
        st.dictionaries(
            st.sampled_from([k for k in ENVIRON if k != "HTTP_AUTHORIZATION"]),
            st.text(st.characters(max_codepoint=255) | st.sampled_from('"\\\n\r\t\x1b')),
        )
    )
    def test_fast_and_careful_ways_agree(self, values: dict[str, str]) -> None:
        template = '%(h)s "%(r)s" %(m)s %(U)s?%(q)s %(H)s %(s)s %(B)s "%(f)s" "%(a)s" %(T)s %(L)s %({host}i)s %(i)s'
        environ = {**ENVIRON, **values}
        text = line(template, environ)
        assert text == template % Atoms(environ, 200, HEADERS, 1234, 3.004567)
        assert text.isascii()
        assert text.isprintable()
        assert text.count('"') == 6


OWN = (
    '{"h":"%(h)s","u":"%(u)s","t":"%(t)s","r":"%(r)s","s":%(s)s,"d":%(s)d,"b":%(b)s,"f":"%(f)s","a":"%(a)s","U":"%(U)s",'
    '"q":"%(q)s","cut":"%(a).3s","wide":"%(a)-9s","header":"%({X-Own}i)s","out":"%({X-Out}o)s","x":"%({x}e)s","D":%(D)s,'
    '"L":%(L)s,"p":"%(p)s","percent":"%%","i":"%(i)s"}'
)


class TestOwnJson:
    """A template that begins with a brace: people's own JSON."""

    ENVIRON: ClassVar = {**ENVIRON, "HTTP_X_OWN": "own", "x": "value"}

    def test_usual_values(self) -> None:
        fields = json.loads(line(OWN, self.ENVIRON, headers=[("X-Out", "out")]))
        assert (fields["h"], fields["u"], fields["s"], fields["d"], fields["b"]) == (
            "192.0.2.7",
            "alice",
            200,
            200,
            1234,
        )
        assert (fields["r"], fields["a"]) == ("GET /things/7?x=1&y=2 HTTP/1.1", "curl/8.5.0")
        assert (fields["cut"], fields["wide"]) == ("cur", "curl/8.5.0")
        assert (fields["header"], fields["out"], fields["x"], fields["percent"]) == ("own", "out", "value", "%")

    def test_quotes_and_backslashes_are_escaped_as_json_has_it(self) -> None:
        environ = {**self.ENVIRON, "HTTP_USER_AGENT": 'a"b\\c\td\x00\x7f'}
        text = line('{"a":"%(a)s"}', environ)
        assert text == r'{"a":"a\u0022b\u005cc\u0009d\u0000\u007f"}'
        assert line(r'  \n{"a":"%(a)s"}'.replace(r"\n", "\n"), environ).strip() == text
        assert line('"%(a)s"', environ) == r'"a\x22b\x5cc\x09d\x00\x7f"'

    def test_octets_are_read_as_utf_8(self) -> None:
        environ = {**self.ENVIRON, "PATH_INFO": "/caf\xc3\xa9\xf0\x9f\x98\x80", "HTTP_REFERER": "\xff"}
        fields = json.loads(line(OWN, environ))
        assert (fields["U"], fields["f"]) == ("/caf\xe9\U0001f600", r"\xff")

    def test_what_cuts_a_value_cuts_no_escape(self) -> None:
        for size in range(12):
            text = line(f'{{"a":"%(a).{size}s","r":"%(a).{size}r"}}', {**ENVIRON, "HTTP_USER_AGENT": 'a"\\\xc3\xa9"b'})
            fields = json.loads(text)
            assert fields["a"] == 'a"\\\xe9"b'[:size]

    @pytest.mark.parametrize("octet", range(256))
    def test_every_octet(self, octet: int) -> None:
        value = f"a{chr(octet)}b"
        user = "Basic " + base64.b64encode(value.encode("latin-1") + b":x").decode()
        environ = dict.fromkeys(self.ENVIRON, value) | {"HTTP_AUTHORIZATION": user}
        text = line(OWN, environ, headers=[("X-Out", value)])
        fields = json.loads(text)
        assert text.isascii()
        assert text.isprintable()
        assert len(fields) == 21
        if chr(octet) != ":":
            assert fields["u"] == fields["a"] == fields["out"]

    @given(st.dictionaries(st.sampled_from([*ENVIRON, "HTTP_X_OWN", "x"]), st.text(st.characters(max_codepoint=255))))
    def test_any_client_makes_one_valid_object(self, values: dict[str, str]) -> None:
        fields = json.loads(line(OWN, {**self.ENVIRON, **values}))
        assert fields["s"] == fields["d"] == 200
        assert len(fields) == 21

    def test_whatever_an_application_puts_there(self) -> None:
        class Bad:
            def __str__(self) -> str:
                raise RuntimeError

        for value in (Bad(), 5, None, "\u20ac\ud800", ['"']):
            json.loads(line(OWN, {**self.ENVIRON, "x": value, "HTTP_USER_AGENT": value}))
        assert json.loads(line(OWN, {}, 400, [], 0, 0.0))["s"] == 400

    def test_the_atoms_of_loggers_are_made_so_too(self) -> None:
        environ = {**self.ENVIRON, "HTTP_USER_AGENT": 'a"' * 5}
        atoms = atoms_for(OWN)(environ, 200, HEADERS, 1234, 3.0)
        assert json.loads(template_of(OWN) % atoms)["a"] == 'a"' * 5
        assert type(atoms_for(COMBINED)(environ, 200, HEADERS, 1234, 3.0)) is Atoms


def test_the_status_is_text_among_the_atoms_and_a_number_where_a_template_wants_one() -> None:
    for template in ("common", OWN, "%(s)s"):
        atoms = atoms_for(template)(ENVIRON, 200, HEADERS, 1234, 3.0)
        assert type(atoms["s"]) is str
        assert atoms["s"] == "200"
    careful = {**ENVIRON, "HTTP_USER_AGENT": '"'}
    for template, expected in (
        ("%(s)s", "200"),
        ("%(s)5d", "  200"),
        ("%(s)x", "c8"),
        ("%(s)-5s|", "200  |"),
        ("%(s).1f", "200.0"),
    ):
        for environ in (ENVIRON, careful):
            assert line(template + " %(a)s", environ).startswith(expected + " ")
        assert template_of(template) % atoms_for(template)(ENVIRON, 200, HEADERS, 0, 0.0) == expected


class TestJson:
    def test_fields_and_types(self) -> None:
        fields = json.loads(line("json"))
        moment = datetime.datetime.fromisoformat(fields.pop("time"))
        assert abs(moment.timestamp() - datetime.datetime.now().timestamp()) < 5
        assert moment.utcoffset() is not None
        assert fields == {
            "remote_addr": "192.0.2.7",
            "user": "alice",
            "request_id": "0123456789abcdef",
            "method": "GET",
            "path": "/things/7",
            "query": "x=1&y=2",
            "protocol": "HTTP/1.1",
            "host": "example.org",
            "referer": "https://example.org/",
            "user_agent": "curl/8.5.0",
            "status": 200,
            "bytes": 1234,
            "duration_s": 3.004567,
            "aborted": False,
            "pid": os.getpid(),
        }

    def test_what_is_missing_is_null(self) -> None:
        fields = json.loads(line("json", {}, 400, [], 0, 0.0))
        assert [name for name, value in fields.items() if value is not None] == [
            "time",
            "status",
            "bytes",
            "duration_s",
            "aborted",
            "pid",
        ]
        assert list(fields) == list(json.loads(line("json")))

    def test_usual_requests_take_the_fast_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*request: Any) -> bytes:
            raise AssertionError("the careful way was taken")

        monkeypatch.setattr("wsgiserv.logs.format.json_line", fail)
        optional = ("HTTP_HOST", "HTTP_REFERER", "HTTP_USER_AGENT", "HTTP_AUTHORIZATION")
        for missing in (*optional, None):
            json.loads(line("json", {k: v for k, v in ENVIRON.items() if k != missing}))
        json.loads(line("json", {**ENVIRON, "REMOTE_ADDR": ""}))

    def test_octets_are_read_as_utf_8(self) -> None:
        fields = json.loads(line("json", {**ENVIRON, "PATH_INFO": "/caf\xc3\xa9", "HTTP_REFERER": "\xff"}))
        assert fields["path"] == "/café"
        assert fields["referer"] == r"\xff"

    @given(
        st.dictionaries(
            st.sampled_from(list(ENVIRON)), st.text(st.characters(max_codepoint=255)) | st.just('","status":999,"x":"')
        )
    )
    def test_any_client_makes_one_valid_object(self, values: dict[str, str]) -> None:
        text = line("json", {**ENVIRON, **values})
        assert "\n" not in text
        fields = json.loads(text)
        assert fields["status"] == 200
        assert len(fields) == 16
        if "HTTP_USER_AGENT" in values:
            octets = values["HTTP_USER_AGENT"].encode("latin-1")
            assert fields["user_agent"] == octets.decode("utf-8", "backslashreplace")


class TestEscape:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ('plain é € \\ "', 'plain é € \\ "'),
            ("a\nb\r\t\x00", r"a\x0ab\x0d\x09\x00"),
            ("\x1b[31m\x7f\x85\x9b", r"\x1b[31m\x7f\x85\x9b"),
            ("\u2028\u2029\ud800", r"\u2028\u2029\ud800"),
        ],
    )
    def test_escape(self, text: str, shown: str) -> None:
        assert escape(text) == shown

    def test_keeping_lines(self) -> None:
        assert escape_keeping_lines("a\n\tb\r\x1b") == "a\n\tb" + r"\x0d\x1b"

    @given(st.text())
    def test_one_safe_line(self, text: str) -> None:
        assert len(escape(text).splitlines()) <= 1
        escape(text).encode()
        assert escape_quoted(text).isascii()
        assert not set('"\n\r') & set(escape_quoted(text))


@pytest.mark.parametrize(
    ("template", "advice"),
    [
        ("combind", "Did you mean 'combined'?"),
        ("Common", "Did you mean 'common'?"),
        ("jsno", "Did you mean 'json'?"),
        ("100 %%", "Expected common, combined, json, or atoms"),
        ("", "has no atom"),
        ("combined", ""),
        ("json", ""),
        ("%(h)s", ""),
        ("%({host}i)s", ""),
    ],
)
def test_a_format_without_an_atom(template: str, advice: str) -> None:
    """gunicorn writes the text itself, for each request."""
    said = format_advice(template)
    assert advice in said
    assert bool(said) == bool(advice)
