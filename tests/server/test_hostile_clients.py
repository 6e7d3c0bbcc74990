"""Clients that mean harm: whatever they send, the server answers, keeps the others' replies going, and lets go."""

from __future__ import annotations

import json
import os
import re
import resource
import select
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

import loragraft as lg
from paths import data
from served import Served, chat_model, comes, http, serving

LONG = {"model": "kjv", "prompt": "And", "max_tokens": 4000, "logit_bias": {"0": -100, "1": -100, "2": -100}}
SAID = [{"role": "user", "content": "hi"}]
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    (folder / "adapters").mkdir()
    for name in ["\udcff", "a\nx-evil: 1", "\x1b[2J", "n" * 240]:
        shutil.copytree(data("llama-kjv.shakespeare"), folder / "adapters" / name)
    with serving(chat_model(folder), "--adapters-dir", folder / "adapters") as server:
        yield server


def post(served: Served, path: str, body: object, **more: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return http.post(served.url + path, content=content, **more)


def running(served: Served) -> int:
    health = http.get(f"{served.url}/health").json()
    return int(health["running"]) + int(health["waiting"])


def wait_until_idle(served: Served) -> None:
    """Until nothing runs any more. If that does not come, tells where the server's threads are."""
    assert comes(lambda: not running(served)), served.stacks()


def connection(served: Served) -> socket.socket:
    host, _, port = served.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=120)


def head(path: str, length: int | str) -> bytes:
    kind = f"Content-Length: {length}" if isinstance(length, int) else f"Transfer-Encoding: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{kind}\r\n\r\n".encode()


def chain(length: int) -> str:
    rules = [f'r{i} ::= "a" | "b" r{i + 1}' for i in range(length)]
    return "\n".join(['root ::= "a" r0', *rules, f'r{length} ::= "c"'])


def properties(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(count)}}


def references(count: int) -> dict[str, Any]:
    defined = {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(count)}
    return {"$defs": {**defined, f"d{count}": {}}, "$ref": "#/$defs/d0"}


#: What a reply is to follow, and whether that can be done.
GRAMMARS: dict[str, tuple[dict[str, Any], bool]] = {
    "a chain of rules": ({"grammar": chain(8000)}, False),
    "a chain that takes long to read": ({"grammar": chain(2500)}, False),
    "deep parentheses": ({"grammar": "root ::= " + "(" * 9000 + '"a"' + ")" * 9000}, False),
    "a rule that is not there": ({"grammar": 'root ::= "a" x'}, False),
    "repeated repetitions": ({"grammar": 'root ::= (("a"{1000}){1000}){1000}'}, False),
    "a grammar of a megabyte": ({"grammar": 'root ::= "' + "a" * 1_000_000 + '"'}, False),
    "rules that call themselves": ({"grammar": 'root ::= root root root | "a" | root root | ""'}, True),
    "a pattern of a million": ({"schema": {"type": "string", "pattern": "^(a{1000}){1000}$"}}, False),
    "many properties": ({"schema": properties(5000)}, False),
    "a chain of references": ({"schema": references(3000)}, False),
    "a multiple of a large number": ({"schema": {"type": "integer", "multipleOf": 982451653}}, False),
    "a text of a billion": ({"schema": {"type": "string", "minLength": 10**9}}, True),
    "a schema elsewhere": ({"schema": {"$ref": "http://127.0.0.1:9/x.json"}}, False),
    "a schema in a file": ({"schema": {"$ref": "file:///etc/passwd"}}, False),
    "a schema that is itself": ({"schema": {"$ref": "#"}}, False),
}


@pytest.mark.parametrize("case", GRAMMARS)
def test_grammars_end_nothing_and_hold_nobody_back(served: Served, case: str) -> None:
    given, possible = GRAMMARS[case]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": given.get("schema")}}
    more = {"grammar": given["grammar"]} if "grammar" in given else {"response_format": form}
    answer = post(served, CHAT, {"model": "kjv", "messages": SAID, "max_tokens": 20, **more})
    assert answer.status_code == (200 if possible else 400), answer.text
    if not possible:
        error = answer.json()["error"]
        assert error["param"] in ("grammar", "response_format"), error
        assert len(error["message"]) < 1100
        assert "\n" not in error["message"]
    assert served.process.poll() is None
    wait_until_idle(served)


def test_why_a_pattern_cannot_be_followed(served: Served) -> None:
    """The library says it in the last of several lines."""
    form = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "(?=a)b"}},
    }
    answer = post(served, CHAT, {"model": "kjv", "messages": SAID, "response_format": form})
    assert answer.status_code == 400
    assert "regex parse error: error: look-around" in answer.json()["error"]["message"]


def deep(levels: int) -> bytes:
    nested = b'{"properties":{"a":' * levels + b"{}" + b"}}" * levels
    form = b'{"type":"json_schema","json_schema":{"name":"x","schema":%b}}' % nested
    return b'{"model":"kjv","messages":[{"role":"user","content":"hi"}],"response_format":%b}' % form


def call(arguments: str) -> dict[str, Any]:
    return {
        "role": "assistant",
        "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": arguments}}],
    }


#: What is sent to which path; the status of the answer, and a part of it.
BODIES: dict[str, tuple[str, object, int, str]] = {
    "deep JSON": (CHAT, b'{"a":' + b"[" * 1_000_000, 400, ""),
    "a schema nested 200 times": (CHAT, deep(200), 400, ""),
    "a schema nested 480 times": (CHAT, deep(480), 400, "recursion"),
    "arguments nested 100,000 times": (
        CHAT,
        {"messages": [call("[" * 100_000)], "max_tokens": 1},
        200,
        "",
    ),
    **{
        f"arguments nested {levels} times": (
            CHAT,
            {"messages": [call('{"a":' * levels + "1" + "}" * levels)], "max_tokens": 1},
            400,
            "nested too deeply",
        )
        for levels in (600, 900)
    },
    "a tool's input nested 600 times": (
        "/v1/messages",
        b'{"model":"kjv","max_tokens":1,"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"a",'
        b'"name":"f","input":%b}]},{"role":"user","content":"x"}]}' % (b'{"a":' * 600 + b"1" + b"}" * 600),
        400,
        "nested too deeply",
    ),
    "a prompt of 8 megabytes": (PLAIN, {"prompt": "a" * 8_000_000}, 400, "context: found 8000000 bytes"),
    "a conversation of 7 megabytes": (
        CHAT,
        {"messages": [{"role": "user", "content": "<|end_of_text|>" * 500_000}]},
        400,
        "context: found 9000",
    ),
    "arguments of many digits": (CHAT, {"messages": [call("9" * 5000)], "max_tokens": 1}, 200, ""),
    "template variables nested": (
        CHAT,
        b'{"model":"kjv","messages":[],"chat_template_kwargs":' + b'{"a":' * 900,
        400,
        "",
    ),
    "a token of many digits": (PLAIN, {"logit_bias": {"9" * 5000: 1}}, 400, "logit_bias: no token"),
    "a token in other digits": (PLAIN, {"logit_bias": {"\u0663": 1}, "max_tokens": 1}, 200, ""),
    "a flood of biases": (PLAIN, {"logit_bias": {str(i): 1 for i in range(100_000)}}, 400, "at most 4096"),
    "a bias beyond all": (PLAIN, {"logit_bias": {"5": 1e300}}, 400, "expected -100 to 100"),
    "a stop text of a megabyte": (PLAIN, {"stop": "a" * 1_000_000}, 400, "expected 1 to 1000"),
    "many stop texts": (PLAIN, {"stop": ["a"] * 17}, 400, "at most 16"),
    "many choices": (PLAIN, {"n": 10**9}, 400, "expected 1 to 16"),
    "many prompts": (PLAIN, {"prompt": ["a"] * 100_000}, 400, "at most 64"),
    "a number beyond 64 bits": (PLAIN, {"max_tokens": 10**30, "temperature": 0, "stop": ["e"]}, 200, ""),
    "the most tokens": (PLAIN, {"max_tokens": 2**63 - 1, "temperature": 0, "stop": ["e"]}, 200, ""),
    "a seed below 0": (PLAIN, {"seed": -1, "max_tokens": 1}, 200, ""),
    "a seed beyond 64 bits": (PLAIN, {"seed": 2**64}, 400, "seed"),
    "a temperature next to 0": (PLAIN, {"temperature": 1e-310, "max_tokens": 2}, 200, ""),
    "a temperature beyond all": (PLAIN, {"temperature": 1e308, "max_tokens": 2}, 200, ""),
    "no token left": (
        PLAIN,
        {"grammar": 'root ::= "a"', "logit_bias": {str(i): -100 for i in range(2048)}, "max_tokens": 2},
        400,
        "leaves no token",
    ),
    "the longest echo": (PLAIN, {"best_of": 7, "suffix": "x" * 100_000}, 400, "best_of"),
    "half of a surrogate pair": (PLAIN, b'{"model":"kjv","prompt":"\\ud800"}', 400, ""),
    "an adapter's name with line breaks": (
        "/v1/load_lora_adapter",
        {"lora_name": "a\r\nx-evil: 1", "lora_path": "x"},
        400,
        "printable",
    ),
    "an adapter's name of a megabyte": (
        "/v1/load_lora_adapter",
        {"lora_name": "a" * 1_000_000, "lora_path": "x"},
        400,
        "printable",
    ),
    "a path with NUL": (
        "/v1/load_lora_adapter",
        {"lora_name": "a", "lora_path": "a\0b"},
        404,
        "no such adapter",
    ),
    "a path of a megabyte": (
        "/v1/load_lora_adapter",
        {"lora_name": "a", "lora_path": "a/" * 500_000},
        404,
        "",
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_bad_body_is_refused_with_its_reason(served: Served, case: str) -> None:
    path, body, status, says = BODIES[case]
    if isinstance(body, dict) and path in (CHAT, PLAIN):
        body = {"model": "kjv", **({"prompt": "a"} if path == PLAIN else {}), **body}
    answer = post(served, path, body)
    assert answer.status_code == status, answer.text[:300]
    assert says in answer.text
    assert len(answer.content) < 10_000
    wait_until_idle(served)


def test_other_replies_go_on_while_grammars_are_read(served: Served) -> None:
    """A client's grammar takes seconds of a processor; others are answered meanwhile."""
    body = json.dumps({"model": "kjv", "prompt": "a", "grammar": chain(2500)}).encode()
    with closing(connection(served)) as slow:
        slow.sendall(head(PLAIN, len(body)) + body)
        others = 0
        while not select.select([slow], [], [], 0)[0]:
            assert http.get(f"{served.url}/health").status_code == 200
            others += 1
        assert slow.recv(100).startswith(b"HTTP/1.1 400")
    assert others > 5  # one or two may come before the grammar is looked at


def test_names_of_files_that_nobody_can_say(served: Served) -> None:
    """They are not listed, and hurt nobody who lists."""
    assert [model["id"] for model in http.get(f"{served.url}/v1/models").json()["data"]] == ["kjv"]
    assert http.get(f"{served.url}/lora-adapters").json() == []
    assert http.get(f"{served.url}/metrics").status_code == 200


@pytest.mark.parametrize("name", ["a\r\nx-evil: 1", "\x00", "\u202e", "/../../etc", "kjv:\ud83d\ude00"])
def test_models_of_odd_names(served: Served, name: str) -> None:
    answer = post(served, PLAIN, {"model": name, "prompt": "a"})
    assert answer.status_code == 404
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/page/%00",
        "/page/..%2f..%2fapp.py",
        "/page/%2e%2e",
        "/page/.%5c",
        "/v1/models/%ff%00",
        "/%0d%0ax-evil:1",
    ],
)
def test_a_strange_path_is_not_found(served: Served, path: str) -> None:
    answer = http.get(served.url + path)
    assert answer.status_code == 404
    assert "x-evil" not in answer.headers


def test_heads_without_end(served: Served) -> None:
    with closing(connection(served)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        try:
            for _ in range(100):
                client.sendall(b"x-a: " + b"b" * 4096 + b"\r\n")
            said = client.recv(1000)
        except ConnectionError:
            said = b""
        assert said == b"" or said.startswith(b"HTTP/1.1 400")


STATUS = re.compile(rb"HTTP/1.1 (\d+) ")


def replies(served: Served, sent: bytes, count: int) -> list[bytes]:
    """The statuses of `count` answers on one connection, and then of no more."""
    with closing(connection(served)) as client:
        client.sendall(sent)
        said = b""
        while len(STATUS.findall(said)) < count and (part := client.recv(10_000)):
            said += part
        client.settimeout(0.2)
        with suppress(TimeoutError):
            said += client.recv(10_000)
    return STATUS.findall(said)


ASKED = json.dumps({"model": "kjv", "prompt": "And", "max_tokens": 2}).encode()
UNLOAD = b'{"lora_name":"one"}'
SMUGGLED = head("/v1/unload_lora_adapter", len(UNLOAD)) + UNLOAD
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ASKED), ASKED)

#: The headers that say where the body ends, and what follows: all are refused, and nothing behind them is read.
ENDS = {
    "length and chunks": (b"Content-Length: 5\r\nTransfer-Encoding: chunked", CHUNKED),
    "chunks and length": (b"Transfer-Encoding: chunked\r\nContent-Length: 5", b"0\r\n\r\n"),
    "two lengths": (b"Content-Length: %d\r\nContent-Length: 0" % len(ASKED), ASKED),
    "a list of lengths": (b"Content-Length: %d, 0" % len(ASKED), ASKED),
    "a length with a sign": (b"Content-Length: +%d" % len(ASKED), ASKED),
    "a length in hexadecimal": (b"Content-Length: 0x%x" % len(ASKED), ASKED),
    "a space before the colon": (b"Content-Length : %d" % len(ASKED), ASKED),
    "another coding": (b"Transfer-Encoding: xchunked", CHUNKED),
    "chunks that are not last": (b"Transfer-Encoding: chunked, identity", CHUNKED),
    "codings twice": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", CHUNKED),
    "a coding behind a control": (b"Transfer-Encoding: \x0bchunked", CHUNKED),
    "a folded header": (b"Transfer-Encoding:\r\n chunked", CHUNKED),
    "a chunk beyond 64 bits": (b"Transfer-Encoding: chunked", b"10000000000000002\r\n{}\r\n0\r\n\r\n"),
    "a chunk below 0": (b"Transfer-Encoding: chunked", b"-2\r\n{}\r\n0\r\n\r\n"),
    "line feeds alone": (b"Transfer-Encoding: chunked", CHUNKED.replace(b"\r\n", b"\n")),
    "a chunk without its end": (b"Transfer-Encoding: chunked", CHUNKED.replace(b"}\r\n", b"}XX")),
    "two hosts": (b"Host: evil.example\r\nContent-Length: %d\r\nConnection: close" % len(ASKED), ASKED),
}


@pytest.mark.parametrize("case", ENDS)
def test_bodies_whose_end_others_may_see_elsewhere(served: Served, case: str) -> None:
    headers, body = ENDS[case]
    sent = b"POST " + PLAIN.encode() + b" HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n" + body + SMUGGLED
    assert replies(served, sent, 1) == [b"400"]


def test_requests_one_behind_the_other(served: Served) -> None:
    """All are answered, in turn, and those of a client that leaves are forgotten."""
    one = head(PLAIN, len(ASKED)) + ASKED
    assert replies(served, one * 20, 20) == [b"200"] * 20
    body = json.dumps(LONG).encode()
    with closing(connection(served)) as client:
        client.sendall((head(PLAIN, len(body)) + body) * 50)
        assert comes(lambda: running(served))
        assert max(running(served) for _ in range(5)) == 1
    wait_until_idle(served)


OFFERS = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n",  # Java's
    b"Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\n",
]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("at_once", [True, False])
def test_another_protocol_is_not_taken(served: Served, offer: bytes, at_once: bool) -> None:
    """The request is answered as it is: its body was lost, and what came next on the connection refused."""
    head_, _, _ = head(PLAIN, len(ASKED)).partition(b"\r\n\r\n")
    one = head_ + b"\r\n" + offer + b"\r\n" + ASKED
    look = b"GET /health HTTP/1.1\r\nHost: x\r\n" + offer + b"\r\n"
    if at_once:
        assert replies(served, one + look + one * 100, 102) == [b"200"] * 102
        return
    with closing(connection(served)) as client:
        for part in (one, look, one[:90], one[90:-10], one[-10:], look + one[:100], one[100:]):
            client.sendall(part)
            time.sleep(0.05)
        said = b""
        while len(STATUS.findall(said)) < 5 and (part := client.recv(10_000)):
            said += part
        assert STATUS.findall(said) == [b"200"] * 5


def test_a_body_without_end(served: Served) -> None:
    with closing(connection(served)) as client:
        client.sendall(head(PLAIN, "chunked"))
        for _ in range(9):
            client.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413")
    assert running(served) == 0


@pytest.mark.parametrize("length", [10**30, -1, 2**64])
def test_lengths(served: Served, length: int) -> None:
    with closing(connection(served)) as client:
        client.sendall(head(PLAIN, length))
        assert client.recv(100).split()[1] in (b"400", b"413")


@pytest.mark.parametrize("line", [b"x-a: b\r\n", b"x" * 8])
def test_a_body_with_trailers_without_end(served: Served, line: bytes) -> None:
    """They were kept, at fourteen bytes of memory for each that came."""
    with closing(connection(served)) as client:
        client.sendall(head(PLAIN, "chunked") + b"1\r\n{\r\n0\r\n" + b"x-b: ")
        assert is_ended(client, line * 8192)
    assert running(served) == 0


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:8080", 403),
        ("localhost:8080", 200),
        ("machine:8080", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("192.168.1.7:8080", 200),
        ("page.localhost:8080", 200),
    ],
)
def test_another_site_whose_name_leads_here(served: Served, host: str, status: int) -> None:
    """A page of a site whose name was made to mean this machine (DNS rebinding) is of the same origin for a browser."""
    for path in ("/", "/v1/models"):
        answer = http.get(served.url + path, headers={"host": host, "origin": f"http://{host}"})
        assert answer.status_code == status, answer.text


def test_names_that_lead_to_a_server_with_a_key(tmp_path: Path) -> None:
    """Behind a proxy it is called by any name, and a key is what other sites do not have."""
    with serving(chat_model(tmp_path), "--api-key", "secret") as served:
        key = {"authorization": "Bearer secret"}
        for headers, status in (({}, 401), (key, 200)):
            answer = http.get(f"{served.url}/v1/models", headers={"host": "models.example", **headers})
            assert answer.status_code == status


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("when", ["at once", "in the middle"])
def test_a_client_that_goes_away_is_worked_for_no_more(served: Served, stream: bool, when: str) -> None:
    body = json.dumps({**LONG, "stream": stream, "n": 8}).encode()
    with closing(connection(served)) as client:
        client.sendall(head(PLAIN, len(body)) + body)
        if when == "in the middle":
            assert comes(lambda: running(served))
            if stream:
                assert client.recv(100).startswith(b"HTTP/1.1 200")
    wait_until_idle(served)


def test_clients_that_go_away_while_they_wait(served: Served) -> None:
    """More streams than there is room for: those in the queue are forgotten with their clients."""
    body = json.dumps({**LONG, "stream": True, "n": 16}).encode()
    clients = [connection(served) for _ in range(12)]
    for client in clients:
        client.sendall(head(PLAIN, len(body)) + body)
    assert comes(lambda: running(served) == 12)
    for client in clients:
        client.close()
    wait_until_idle(served)


def test_a_client_that_reads_nothing(served: Served) -> None:
    """Its reply waits for it; the others' do not."""
    body = json.dumps({**LONG, "stream": True, "logprobs": 20}).encode()
    with closing(connection(served)) as client:
        client.sendall(head(PLAIN, len(body)) + body)
        assert comes(lambda: running(served))
        other = post(served, PLAIN, {"model": "kjv", "prompt": "And", "max_tokens": 4})
        assert other.status_code == 200
    wait_until_idle(served)


def test_many_connections(tmp_path: Path) -> None:
    """More than `select` knows: chat templates are rendered all the same."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if most < 1500:
        pytest.skip(f"the system allows {most} open files: too few for 1100 connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))  # the server's too
    clients = []
    try:
        with serving(chat_model(tmp_path)) as served:
            clients += [connection(served) for _ in range(1100)]
            answer = post(served, CHAT, {"model": "kjv", "messages": SAID, "max_tokens": 1})
            assert answer.status_code == 200, answer.text
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_loading_adapters(served: Served, folder: Path) -> None:
    """No message tells where the server keeps its files, and a name is one for which there is room."""
    broken = folder / "adapters" / ".hidden"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{")
    answer = post(served, "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": ".hidden"})
    assert answer.status_code == 400
    assert str(folder) not in answer.text
    (folder / "out").symlink_to("/")
    for path in ("../out", "../kjv", str(folder), "/etc", "./../adapters/../kjv", "."):
        answer = post(served, "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": path})
        assert answer.status_code == 404, path
        assert str(folder / "kjv") not in answer.text


def test_slow_clients(tmp_path: Path) -> None:
    """With times of a second: a head that does not come whole, a body without end and an answer that is not read end
    the connection."""
    impatient = "import loragraft.server.protocol as p\np.HEAD_SECONDS = p.READ_SECONDS = 1.0\n"
    with serving(chat_model(tmp_path), before=impatient) as served:
        with closing(connection(served)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: ")
            assert client.recv(100) == b""
        with closing(connection(served)) as client:  # after a first request, too
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            said = b""
            while b'"waiting":0}' not in said:
                said += (part := client.recv(10_000))
                assert part, said
            client.sendall(b"GET /health HT")
            assert client.recv(100) == b""
        with closing(connection(served)) as client:
            client.sendall(head(PLAIN, "chunked"))
            assert is_ended(client, b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
        with closing(connection(served)) as client:
            assert is_ended(client, b"GET /page/main.js HTTP/1.1\r\nHost: x\r\n\r\n")


def is_ended(client: socket.socket, part: bytes) -> bool:
    """Whether the server gives up a client that sends `part` again and again, and reads nothing."""
    client.settimeout(1)
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            client.sendall(part)
        except TimeoutError:
            continue
        except ConnectionError:
            return True
        time.sleep(0.001)
    return False


def test_one_failure_is_one_requests(served: Served) -> None:
    """A reply under way goes on while others fail in the same passes."""
    body = json.dumps({**LONG, "max_tokens": 300}).encode()
    with closing(connection(served)) as client:
        client.sendall(head(PLAIN, len(body)) + body)
        assert comes(lambda: running(served))
        path, failing, status, _ = BODIES["no token left"]
        assert isinstance(failing, dict)
        for _ in range(3):
            assert post(served, path, {"model": "kjv", "prompt": "a", **failing}).status_code == status
        assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_a_model_that_becomes_shorter(tmp_path: Path) -> None:
    """No token is made of zeros in its place."""
    path = tmp_path / "model.gguf"
    lg.merge(data("llama-kjv"), [], path, type="Q8_0")
    with serving(path, "--alias", "kjv") as served:
        ask = {"model": "kjv", "prompt": "And", "max_tokens": 3}
        assert post(served, PLAIN, ask).status_code == 200
        os.truncate(path, path.stat().st_size // 2)
        answer = post(served, PLAIN, ask)
        assert answer.status_code == 400
        assert "model.gguf: became shorter" in answer.text
        assert str(tmp_path) not in answer.text
