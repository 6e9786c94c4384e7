"""The page's Markdown: what a model writes becomes elements, and nothing else ever."""

import time

import pytest


@pytest.fixture
def render(one_page):
    """The HTML that a text becomes."""

    def run(text):
        return one_page.evaluate(
            """async (text) => {
                const { show } = await import("/markdown.js");
                const box = document.createElement("div");
                show(box, text);
                return box.innerHTML;
            }""",
            text,
        )

    return run


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("plain", "<p>plain</p>"),
        ("a\nb\n\nc", "<p>a\nb</p><p>c</p>"),
        ("a  \nb\\\nc", "<p>a<br>b<br>c</p>"),
        ("# One #\n###Two\n### Three", "<h2>One</h2><p>###Two</p><h4>Three</h4>"),
        ("**a** *b* ~~c~~ __d__ _e_", "<p><strong>a</strong> <em>b</em> <del>c</del> "
                                      "<strong>d</strong> <em>e</em></p>"),
        ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
        ("***a***", "<p><strong><em>a</em></strong></p>"),
        ("snake_case_name 2*3*4 a * b * c", "<p>snake_case_name 2<em>3</em>4 a * b * c</p>"),
        ("**open and `open", "<p>**open and `open</p>"),
        ("`a*b*` `` `x` ``", "<p><code>a*b*</code> <code>`x`</code></p>"),
        (r"\*not\* \# \x", r"<p>*not* # \x</p>"),
        ("- a\n- b\n  - c\n\nd", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><p>d</p>"),
        ("1. a\n2. b", "<ol><li>a</li><li>b</li></ol>"),
        ("7. a\n8. b", '<ol start="7"><li>a</li><li>b</li></ol>'),
        ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
        ("text\n- a", "<p>text</p><ul><li>a</li></ul>"),
        ("in\n1984. a year", "<p>in\n1984. a year</p>"),
        ("- a\n* b", "<ul><li>a</li></ul><ul><li>b</li></ul>"),
        ("> a\n> b\nc\n\nd", "<blockquote><p>a\nb\nc</p></blockquote><p>d</p>"),
        ("---\n***", "<hr><hr>"),
        ("a | b\n--|--\n1 | 2 \\| 3",
         '<div class="scroll" tabindex="0"><table><thead><tr><th class="left">a</th>'
         '<th class="left">b</th></tr></thead><tbody><tr><td class="left">1</td>'
         '<td class="left">2 | 3</td></tr></tbody></table></div>'),
        ("a | b\nno table", "<p>a | b\nno table</p>"),
    ],
)  # fmt: skip
def test_elements(text, html, render):
    assert render(text) == html


def test_code_is_shown_as_it_is(render):
    html = render("```py\n<b>&*x*\n\n# no heading\n``\n````\nafter")
    assert "<code>&lt;b&gt;&amp;*x*\n\n# no heading\n``</code>" in html
    assert html.endswith("<p>after</p>")
    assert "<span>py</span>" in html
    assert "<code>x = 1</code>" in render("~~~\nx = 1")  # it may still be open


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("[a](https://x.org/y_z)", "https://x.org/y_z"),
        ('[a](https://x.org/(y) "title")', "https://x.org/(y)"),
        ("<https://x.org>", "https://x.org"),
        ("see https://x.org/a_b_c.", "https://x.org/a_b_c"),
        ("(https://x.org/a)", "https://x.org/a"),
        ("[mail](mailto:a@x.org)", "mailto:a@x.org"),
    ],
)
def test_links(text, address, render):
    html = render(text)
    assert f'href="{address}"' in html
    assert 'rel="noopener noreferrer nofollow"' in html


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "[a](JaVaScRiPt:alert(1))",
        "[a](data:text/html,<script>alert(1)</script>)",
        "[a](vbscript:x) [b](//x.org) [c](/local) [d](file:///etc/passwd)",
        "<javascript:alert(1)>",
        "![a](https://x.org/a.png)",
        '[a](https://x.org" onclick="alert(1))',
        '```"><img src=x onerror=alert(1)>\nx\n```',
    ],
)
def test_nothing_becomes_a_tag_or_a_dangerous_address(text, one_page):
    one_page.evaluate(
        """async (text) => {
            const { show } = await import("/markdown.js");
            const box = document.createElement("div");
            document.querySelector("#log").replaceChildren(box);
            show(box, text);
        }""",
        text,
    )
    assert one_page.locator("#log :is(script, img, iframe, object, style)").count() == 0
    unsafe = """[...document.querySelectorAll('#log *')].filter((e) => [...e.attributes].some(
        (a) => a.name.startsWith('on') || (a.name === 'href' && !/^(https?|mailto):/.test(a.value))
    )).length"""
    assert one_page.evaluate(unsafe) == 0


def test_html_from_a_string_is_impossible(page):
    """The page's own policy refuses it, whoever should try."""
    refused = """() => {
        try { document.body.innerHTML = "<b>x</b>"; return false; } catch { return true; }
    }"""
    fresh = page.context.new_page()
    fresh.goto(page.url)
    assert fresh.evaluate(refused)


@pytest.mark.parametrize(
    "text",
    [
        "*a " * 40_000,
        "[" * 40_000,
        "[a](" * 20_000,
        "`" * 40_000,
        "` `` " * 20_000,
        "**a *b " * 20_000,
        "> " * 20_000 + "deep",
        "- " * 20_000 + "deep",
        "  " * 200 + "- x\n" * 2000,
        "|" * 40_000 + "\n" + "|-" * 20_000,
        "_a_ " * 40_000,
        "https://x.org/ " * 20_000,
        "<" * 40_000,
        "~~~" * 10_000,
        "\\" * 40_000,
        " " * 40_000 + "x",
        "# " * 20_000,
    ],
    ids=lambda text: repr(text[:7]),
)
def test_hostile_text_takes_no_long_time(text, render):
    began = time.process_time()
    render(text)
    assert time.process_time() - began < 5


def test_blocks_that_are_complete_keep_their_elements(one_page):
    kept = one_page.evaluate(
        """async () => {
            const { show } = await import("/markdown.js");
            const box = document.createElement("div");
            show(box, "# one\\n\\ntwo\\n\\nthr");
            const before = [...box.children];
            show(box, "# one\\n\\ntwo\\n\\nthree");
            return before.map((element, i) => element === box.children[i]);
        }"""
    )
    assert kept == [True, True, False]


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a_text_shown_in_steps_ends_as_the_whole(step, one_page):
    text = (
        "# T\n\npara *x*\n- a\n  - b\n- c\n\n```js\nf()\n```\n> q\n\n|a|b|\n|-|-|\n|1|2|\n\nend **b"
    )
    assert one_page.evaluate(
        """async ([text, step]) => {
            const { show } = await import("/markdown.js");
            const [whole, grown] = [document.createElement("div"), document.createElement("div")];
            show(whole, text);
            for (let n = 0; n < text.length; n += step) show(grown, text.slice(0, n));
            show(grown, text);
            return whole.isEqualNode(grown);
        }""",
        [text, step],
    )
