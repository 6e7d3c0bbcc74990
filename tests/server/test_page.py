"""The page in a real browser: Chromium, where it is installed (`make test-page`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import loragraft as lg
from paths import data
from served import Served, chat_model, http, serving

pytestmark = pytest.mark.browser
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with serving(chat_model(folder), "--lora", f"poet={data('llama-kjv.shakespeare')}") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=_FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """The page, loaded; errors on its console fail the test."""
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    problems: list[str] = []
    opened.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(served.url)
    opened.locator(".adapters label").first.wait_for()
    opened.fill("#seed", "3")
    opened.fill("#max-tokens", "24")
    yield opened
    opened.close()
    assert problems == []


def send(page: Any, text: str, replies: int) -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")
    page.locator(".facts details").nth(replies - 1).wait_for(timeout=60_000)
    page.locator("#send", has_text="Send").wait_for()


def slide(page: Any, side: int, value: float) -> None:
    slider = page.locator(f'.side[data-side="{side}"] input[type=range]').first
    slider.evaluate("(e, value) => { e.value = value; e.dispatchEvent(new Event('input')); }", value)


def test_a_reply_comes_with_its_receipt(page: Any) -> None:
    slide(page, 0, 0.5)
    send(page, "What say you?", 1)
    assert len(page.locator(".reply").inner_text()) > 20
    assert "poet × 0.5 · 24 tokens" in page.locator(".facts").first.inner_text()
    page.locator(".facts summary").click()
    receipt = page.locator(".facts pre").inner_text()
    assert '"strength": 0.5' in receipt
    assert '"sha256"' in receipt


def test_two_settings_side_by_side(page: Any) -> None:
    page.keyboard.press("Alt+c")
    slide(page, 1, 1.0)
    send(page, "What say you?", 2)
    assert page.locator(".reply").count() == 2
    assert page.locator(".parted").count() > 2
    page.keyboard.press("Alt+n")
    slide(page, 1, 0)
    send(page, "What say you?", 2)
    assert "Both are the same, token by token." in page.locator("#log").inner_text()


def test_what_a_model_says_is_never_html(page: Any) -> None:
    shown = page.evaluate(
        """async () => {
            const { render } = await import('/page/markdown.js');
            const box = document.createElement('div');
            box.append(render('# Title\\n**bold** <img src=x onerror=alert(1)> [x](javascript:alert(1)) `a<b`\\n' +
                '- one\\n- two\\n```py\\n<script>\\n```'));
            return box.innerHTML;
        }"""
    )
    assert "<h3>Title</h3>" in shown
    assert "<strong>bold</strong>" in shown
    assert "&lt;img src=x" in shown
    assert 'href="javascript' not in shown
    assert "<li>one</li><li>two</li>" in shown
    assert "&lt;script&gt;" in shown


MARKDOWN = """1. one
   - inner
   - more

2. two
```py
a | b
```
3. three

| n | v |
|---|--:|
| a | `1` |

> said
> > twice

---
_so_ a_b_c https://example.org/x. **bold**"""


def test_what_replies_are_made_of(page: Any) -> None:
    """Lists in lists and numbers that go on, tables, quotations, rules, addresses."""
    shown = page.evaluate(
        """async (text) => {
            const { render } = await import('/page/markdown.js');
            const box = document.createElement('div');
            box.append(render(text));
            for (const button of box.querySelectorAll('button')) button.remove();
            return box.innerHTML;
        }""",
        MARKDOWN,
    )
    assert '<ol start="1"><li>one<ul><li>inner</li><li>more</li></ul></li><li>two</li></ol>' in shown
    assert '<ol start="3"><li>three</li></ol>' in shown
    assert '<code class="language-py">a | b</code>' in shown
    assert "<tr><th>n</th>" in shown
    assert '<td style="text-align: right;"><code>1</code></td>' in shown
    assert "<blockquote><p>said</p><blockquote><p>twice</p></blockquote></blockquote><hr>" in shown
    assert "<em>so</em> a_b_c <a " in shown
    assert 'href="https://example.org/x"' in shown
    assert "</a>. <strong>bold</strong>" in shown


def test_quotations_without_end_are_text(page: Any) -> None:
    depth = page.evaluate(
        """async () => {
            const { render } = await import('/page/markdown.js');
            const box = document.createElement('div');
            box.append(render('> '.repeat(20000) + 'x'));
            return box.querySelectorAll('blockquote').length;
        }"""
    )
    assert depth == 8


def test_a_server_that_is_lost_and_comes_back(browser: Any, tmp_path: Path) -> None:
    model = chat_model(tmp_path)
    config = json.loads((model / "config.json").read_text())
    # So that the reply can't have ended, however fast it is made: it repeats itself, without an end.
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1 << 15}))
    with serving(model) as server:
        opened = browser.new_page(viewport={"width": 1200, "height": 800})
        opened.goto(server.url)
        opened.locator(".adapters .none").first.wait_for()
        opened.fill("#temperature", "0")
        opened.fill("#max-tokens", "32000")
        opened.fill("#prompt", "Go on")
        opened.keyboard.press("Enter")
        opened.locator(".reply p").first.wait_for(timeout=60_000)
        server.process.kill()
        broken = opened.locator(".error[role=alert]")
        broken.wait_for(timeout=60_000)
        assert "was lost during the reply" in broken.inner_text()
        opened.get_by_role("button", name="Try again").click()
        opened.locator(".error", has_text="cannot be reached").wait_for()
        assert opened.locator(".mine").all_inner_texts() == ["Go on"]  # once
        server.process.wait()
    with serving(model, "--port", urlsplit(server.url).port or 0):
        opened.fill("#max-tokens", "8")
        opened.get_by_role("button", name="Try again").click()
        opened.locator(".facts details").wait_for(timeout=60_000)
        assert opened.locator(".error").count() == 0
        assert "8 tokens (the limit)" in opened.locator(".facts").inner_text()
        opened.close()


def test_adapters_that_come_and_go_are_seen(browser: Any, tmp_path: Path) -> None:
    with serving(chat_model(tmp_path), "--lora", f"poet={data('llama-kjv.shakespeare')}") as server:
        opened = browser.new_page(viewport={"width": 1200, "height": 800})
        opened.goto(server.url)
        opened.locator(".adapters label").first.wait_for()
        slide(opened, 0, 0.5)
        http.post(f"{server.url}/v1/unload_lora_adapter", json={"lora_name": "poet"}).raise_for_status()
        opened.fill("#prompt", "Go on")
        opened.keyboard.press("Enter")
        opened.locator(".error", has_text="no adapter 'poet'").wait_for()
        opened.locator(".adapters .none").first.wait_for()
        opened.fill("#max-tokens", "8")
        opened.get_by_role("button", name="Try again").click()
        opened.locator(".facts details").wait_for(timeout=60_000)
        assert "base · 8 tokens" in opened.locator(".facts").inner_text()
        opened.close()


def test_the_keyboard_is_enough(page: Any) -> None:
    """From the message back to the settings and to all that can be done, and Escape closes what covers a phone."""
    reached = set()
    page.locator("#prompt").focus()
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        reached.add(
            page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')")
        )
    assert {
        "log",
        "system",
        "max-tokens",
        "seed",
        "temperature",
        "Strength of poet",
        "theme",
        "new",
    } <= reached
    page.set_viewport_size({"width": 360, "height": 700})
    page.click("#toggle")
    page.locator("#seed").focus()
    page.keyboard.press("Escape")
    assert not page.locator("#seed").is_visible()
    assert page.evaluate("document.activeElement.id") == "toggle"
    assert page.get_attribute("#toggle", "aria-expanded") == "false"


def test_the_end_of_a_reply_does_not_take_the_focus(page: Any) -> None:
    page.fill("#prompt", "Go on")
    page.keyboard.press("Enter")
    page.locator("#seed").focus()
    page.locator(".facts details").wait_for(timeout=60_000)
    page.locator("#send", has_text="Send").wait_for()
    assert page.evaluate("document.activeElement.id") == "seed"


def test_a_long_message_has_room(page: Any) -> None:
    before = page.locator("#prompt").bounding_box()["height"]
    page.fill("#prompt", "word " * 120)  # one line that wraps
    assert page.locator("#prompt").bounding_box()["height"] > 2 * before
    page.fill("#prompt", "")
    assert page.locator("#prompt").bounding_box()["height"] == before


def test_at_a_phone_s_width_nothing_is_cut(page: Any) -> None:
    page.fill("#max-tokens", "200")
    page.set_viewport_size({"width": 360, "height": 700})
    send(page, "What say you of the king and of all his people, and of bread and wine?", 1)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.click("#compare")
    send(page, "And what of the sea?", 3)
    box = page.locator("#composer").bounding_box()
    assert box["y"] + box["height"] <= 700
    page.keyboard.press("Alt+c")
    page.click("#toggle")
    assert page.locator("#temperature").is_visible()


def test_an_error_is_in_sight(browser: Any, served: Served) -> None:
    opened = browser.new_page(viewport={"width": 360, "height": 700})
    opened.goto(served.url)
    opened.locator(".adapters label").first.wait_for(state="attached")
    opened.fill("#prompt", "word " * 3000)
    opened.keyboard.press("Enter")
    opened.locator(".error", has_text="longer than the model's context").wait_for()
    error = opened.locator(".error").bounding_box()
    assert 0 < error["y"] < error["y"] + error["height"] <= opened.locator("#composer").bounding_box()["y"]
    opened.close()


def test_a_model_without_a_template_continues_texts(browser: Any) -> None:
    with serving(data("llama-kjv"), "--lora", f"poet={data('llama-kjv.shakespeare')}") as server:
        opened = browser.new_page(viewport={"width": 1200, "height": 800})
        opened.goto(server.url)
        opened.locator(".adapters label").first.wait_for()
        assert "a text to continue" in opened.get_attribute("#prompt", "placeholder")
        assert not opened.locator("#system").is_visible()  # there is no place for it in the prompt
        opened.set_viewport_size({"width": 360, "height": 700})
        assert opened.evaluate(
            "(box => box.scrollHeight <= box.clientHeight)(document.querySelector('#prompt'))"
        )
        opened.set_viewport_size({"width": 1200, "height": 800})
        opened.fill("#temperature", "0")
        opened.fill("#max-tokens", "12")
        send(opened, "And the king said", 1)
        shown = opened.locator(".reply > div").first.inner_text()
        own = "".join(lg.load(data("llama-kjv")).generate("And the king said", max_tokens=12, temperature=0))
        assert shown.split() == own.split()
        opened.close()


def test_dark_mode(page: Any) -> None:
    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    before = ground()
    page.keyboard.press("Alt+d")
    assert ground() != before


def test_stopping(page: Any, tmp_path: Path) -> None:
    page.fill("#max-tokens", "900")
    page.fill("#prompt", "Go on")
    page.keyboard.press("Enter")
    page.locator(".reply p").first.wait_for(timeout=60_000)
    page.keyboard.press("Escape")
    page.locator("#send", has_text="Send").wait_for()
    assert page.locator(".error").count() == 0


def test_a_conversation_that_begins_while_a_reply_runs_is_a_new_one(page: Any) -> None:
    asked: list[Any] = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.post_data else None)
    page.fill("#max-tokens", "900")
    page.fill("#prompt", "Go on")
    page.keyboard.press("Enter")
    page.locator(".reply p").first.wait_for(timeout=60_000)
    page.keyboard.press("Alt+n")
    page.locator("#send", has_text="Send").wait_for()
    page.fill("#max-tokens", "8")
    send(page, "What say you?", 1)
    assert [message["content"] for message in asked[-1]["messages"]] == ["What say you?"]
    assert page.locator(".mine").count() == 1


def test_many_adapters_can_be_searched(browser: Any, tmp_path: Path) -> None:
    options: list[object] = []
    for number in range(15):
        options += ["--lora", f"a{number}={data('llama-kjv.shakespeare')}"]
    with serving(chat_model(tmp_path), *options) as server:
        opened = browser.new_page(viewport={"width": 1200, "height": 800})
        opened.goto(server.url)
        opened.locator(".adapters label").first.wait_for()
        slide(opened, 0, 0.5)
        opened.locator(".filter").first.fill("A13")
        shown = [
            label.inner_text().split()[0]
            for label in opened.locator(".side:not([hidden]) label:visible").all()
        ]
        assert shown == ["a0", "a13"]  # and what is on
        opened.close()


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ("abcd", "abcd", [[], []]),
        ("abcd", "axcd", [[1], [1]]),
        ("abcd", "abXYcd", [[], [2, 3]]),
        ("abc", "", [[0, 1, 2], []]),
        ("abc", "xyz", [[0, 1, 2], [0, 1, 2]]),
    ],
)
def test_tokens_that_one_reply_has_for_itself(page: Any, a: str, b: str, wanted: Any) -> None:
    found = page.evaluate(
        """async ([a, b]) => {
            const { parting } = await import('/page/reply.js');
            return parting([...a], [...b]).map((places) => [...places]);
        }""",
        [a, b],
    )
    assert found == wanted
