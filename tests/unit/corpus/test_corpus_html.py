"""Golden pages: what a person reads, and in which order."""

from __future__ import annotations

import contextlib
import re
import time

import pytest

from mm1_pipeline.corpus.boilerplate import is_boilerplate_line
from mm1_pipeline.corpus.html import Image, absolute_url, extract_document
from mm1_pipeline.ground.rejects import Rejected

URL = "http://site.example/articles/2024/page.html"


def read(html: str, url: str = URL) -> str:
    """The page as text, with images as [address]; addresses of the page's site are shortened."""
    parts = extract_document(html, url).parts
    text = "".join(f"[{p.urls[0]}]" if isinstance(p, Image) else p.text for p in parts)
    return text.replace("http://site.example", "")


def body(content: str, head: str = "") -> str:
    return f"<!doctype html><html><head>{head}</head><body>{content}</body></html>"


LONG = (
    "A sentence that is long enough to be the content of this page, and goes on for a while. " * 4
)

GOLDEN = {
    "reading order of an article": (
        body("""
            <header><a href="/">Home</a> <img src="/logo.svg"></header>
            <nav><ul><li><a href="/a">A</a></li><li><a href="/b">B</a></li></ul></nav>
            <main><h1>Title</h1>
              <p>First <b>bold</b> and <a href="x">linked</a>   text.</p>
              <figure><img src="/one.jpg"><figcaption>Caption one</figcaption></figure>
              <p>Second.</p><h2>Section</h2><p>Third.</p>
              <img src="two.jpg"></main>
            <aside>Read also this</aside><footer>© 2024 Site</footer>"""),
        "Title\n\nFirst bold and linked text.[/one.jpg]\n\nCaption one\n\nSecond.\n\nSection\n\n"
        "Third.[/articles/2024/two.jpg]",
    ),
    "nested figures keep their captions in place": (
        body("""<article><p>Intro.</p>
            <figure><figure><img src="/a.png"><figcaption>Left</figcaption></figure>
              <figure><a href="/big"><img src="/b.png"></a><figcaption>Right</figcaption></figure>
              <figcaption>Both</figcaption></figure><p>Outro.</p></article>"""),
        "Intro.[/a.png]\n\nLeft[/b.png]\n\nRight\n\nBoth\n\nOutro.",
    ),
    "lazy images have their real address elsewhere": (
        body("""<p>Start</p>
            <img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" data-src="/real.jpg"><p>a</p>
            <img src="/blank.gif" data-original="/original.jpg"><p>b</p>
            <img srcset="/s.jpg 320w, /l.jpg 1280w, /m.jpg 640w"><p>c</p>
            <img data-srcset="/x1.jpg 1x, /x2.jpg 2x"><p>d</p>
            <picture><source srcset="/p.webp 800w"><img alt="none"></picture><p>e</p>
            <noscript><img src="/noscript.jpg"> Please enable JavaScript</noscript><p>f</p>
            <img alt="without any address"><p>g</p><img src="data:image/png;base64,AAAA">"""),
        "Start[/real.jpg]\n\na[/original.jpg]\n\nb[/l.jpg]\n\nc[/x2.jpg]\n\nd[/p.webp]\n\ne"
        "[/noscript.jpg]\n\nf\n\ng[data:image/png;base64,AAAA]",
    ),
    "boilerplate is left out whatever it is made of": (
        body(f"""
            <div class="navbar"><a href="/">Start</a></div>
            <div id="breadcrumbs"><a href="/">Start</a> &gt; <a href="/a">Articles</a></div>
            <div role="navigation">Go <a href="/">there</a></div>
            <div class="sideBar left">Side</div>
            <p class="skip-link">Skip to main content</p>
            <p>{LONG}</p>
            <ul><li><a href="/1">Another story</a></li><li><a href="/2">And one more</a></li>
                <li><a href="/3">A third one</a></li></ul>
            <div class="share-buttons">Tell your friends</div>
            <div class="cookie_banner">We value your privacy</div>
            <div hidden>Hidden</div><div style="color: red; display:none">Gone</div>
            <div aria-hidden="true">Decoration</div><dialog open>Sign up</dialog>
            <script>var x = "<p>script</p>";</script><style>p {{}}</style>
            <form>Name <input value="x"><button>Send</button><select><option>1</select></form>
            <svg><text>drawn</text></svg><iframe>frame</iframe><template><p>t</p></template>
            <p>Advertisement</p><p>All rights reserved.</p><p>Read more</p>
            <div class="comments"><p>First!</p></div>"""),
        f"{' '.join(LONG.split())}\n\nName",
    ),
    "what is named like boilerplate and holds most of the page is content": (
        body(f"""<div class="page has-sidebar" id="search-wrapper"><p>{LONG}</p>
            <div class="sidebar">Side</div></div>"""),
        " ".join(LONG.split()),
    ),
    "a base address and odd addresses": (
        body(
            """<p>a</p><img src="rel.jpg"><p>b</p><img src="//cdn.example/x.jpg?q=1#frag"><p>c</p>
            <img src=" /spaced name.jpg "><p>d</p><img src="javascript:alert(1)">
            <img src="http://[bad"><img src="file:///etc/passwd"><p>e</p>""",
            '<base href="/other/dir/">',
        ),
        "a[/other/dir/rel.jpg]\n\nb[http://cdn.example/x.jpg?q=1]\n\nc[/spaced%20name.jpg]\n\nd\n\ne",
    ),
    "code keeps its lines": (
        body("""<p>Run <code>make   all</code>:</p><pre><code>def f(x):
    if x:

        return  x   <span class="comment"># odd  one</span>
</code></pre><p>Then:</p>
            <div class="fragment"><div class="line">a = [</div>
            <div class="line">&#160;&#160;1,</div><div class="ttc">a tooltip</div>
            <div class="line">]</div></div><p>Done<br>now.</p>"""),
        "Run make all:\n\ndef f(x):\n    if x:\n\n        return  x   # odd  one\n\nThen:\n\n"
        "a = [\n  1,\n]\n\nDone\nnow.",
    ),
    "lists get markers": (
        body("""<p>Need:</p><ul><li>milk</li><li><p>eggs</p><p>of hens</p>
                <ul><li>six</li></ul></li><li></li></ul>
            <ol start="3"><li>beat</li><li>fry <img src="/pan.jpg"> well</li></ol>
            <dl><dt>Pan</dt><dd>A flat pot</dd></dl><p>End.</p>"""),
        "Need:\n\n- milk\n- eggs\nof hens\n  - six\n\n3. beat\n4. fry[/pan.jpg] well\n\n"
        "Pan\nA flat pot\n\nEnd.",
    ),
    "tables become lines": (
        body("""<p>Prices:</p><table><caption>In euro</caption>
            <tr><th>what</th><th>how<br>much</th></tr>
            <tr><td>tea <img src="/tea.jpg"></td><td></td><td><p>2</p><p>or 3</p></td></tr></table>
            <table><tr><td><p>Layout left</p><ul><li>x</li></ul></td><td>right</td></tr></table>
            <table><tr><td>Note: one cell.</td></tr></table>"""),
        "Prices:\n\nIn euro\nwhat | how much\ntea | 2 or 3[/tea.jpg]\n\nLayout left\n\n- x\n\nright"
        "\n\nNote: one cell.",
    ),
    "formulas and signs of anchors": (
        body("""<h1>Sum<a class="headerlink" href="#sum">¶</a></h1>
            <p>Let <math><mi>x</mi><semantics><mrow>no</mrow>
            <annotation encoding="application/x-tex">x^2</annotation></semantics></math> be
            <math><mi>a</mi> <mo>+</mo></math> &amp; <sup>2</sup>&nbsp;&euro;.</p>"""),
        "Sum\n\nLet $x^2$ be a + & 2 €.",
    ),
    "empty sections lose their headings": (
        body("""<h1>Page</h1><h2>Contents</h2><h2>Empty</h2><h2>Pictures</h2><img src="/p.jpg">
            <h2>Chapter</h2><h3>Part</h3><p>Text.</p><h2>See also</h2>
            <ul><li><a href="/1">One</a></li><li><a href="/2">Two</a></li>
            <li><a href="/3">Three</a></li></ul>"""),
        "Page\n\nPictures[/p.jpg]\n\nChapter\n\nPart\n\nText.",
    ),
    "an image inside a line does not break it": (
        body('<p>Click the <img src="/icon.png"> button, then <b>go<img src="/i2.png"></b>.</p>'),
        "Click the[/icon.png] button, then go[/i2.png] .",
    ),
    "a header inside the article holds its title": (
        body(f"""<header>Site name</header><article><header><h1>Title</h1></header>
            <p>{LONG}</p><footer>Author</footer></article>"""),
        f"Title\n\n{' '.join(LONG.split())}",
    ),
    "broken markup": (
        "<p>one<p>two <b>three<div>four</p></b><img src=/x.jpg><td>five</table></html><p>six",
        "one\n\ntwo three\n\nfour[/x.jpg]\n\nfive\n\nsix",
    ),
    "nothing": ("", ""),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_page(name):
    html, expected = GOLDEN[name]
    assert read(html) == expected


def test_the_title_is_known():
    document = extract_document("<title> A  title\n</title><p>x</p>", URL)
    assert document.title == "A title"


def test_images_name_all_their_addresses():
    html = '<img src="/small.jpg" data-src="/real.jpg" srcset="/large.jpg 2x, /small.jpg">'
    (image,) = extract_document(html, URL).parts
    assert isinstance(image, Image)
    names = [url.rsplit("/", 1)[1] for url in image.urls]
    assert names == ["real.jpg", "small.jpg", "large.jpg"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Skip to main content", True),
        ("Next »", True),
        ("Prev Tutorial: Contours", True),
        ("© 2020 by us", True),
        ("Edit this page on GitHub", True),
        ("We use cookies. This site uses cookies to count you.", True),
        ("Next we look at a picture.", False),
        ("Home is where the heart is.", False),
        ("The menu has three entries.", False),
        ("Copyright law is complicated, and this page explains it. " * 3, False),
        ("Share your results", False),
        ("Print the report", False),
    ],
)
def test_lines_that_pages_repeat(line, expected):
    assert is_boilerplate_line(line) == expected


@pytest.mark.parametrize("nest", ["<div>", "<b>", "<ul><li>", "<x-y>", "<div></x>"])
def test_hostile_nesting_is_refused_quickly(nest):
    start = time.perf_counter()
    with pytest.raises(Rejected) as caught:
        read(nest * 100_000)
    assert caught.value.reason == "page_too_complex"
    assert time.perf_counter() - start < 10  # measured 0.1 s; the parser alone takes 25 s


@pytest.mark.parametrize("blocks", [2_400, 50_000])
def test_formatting_that_multiplies_is_refused(blocks):
    # 50,000 blocks would take 4 GB and half a minute.
    fonts = "".join(f"<font size={n}>" for n in range(140))
    with pytest.raises(Rejected) as caught:
        read(f"<p>{fonts}" + "<p>x" * blocks)
    assert caught.value.reason == "page_too_complex"


@pytest.mark.parametrize("attribute", ["a{n}=1", "a{n}", "a{n}='x>y'"])
def test_hostile_attributes_are_refused_quickly(attribute):
    attributes = " ".join(attribute.format(n=n) for n in range(50_000))
    start = time.perf_counter()
    with pytest.raises(Rejected) as caught:
        read(f"<p {attributes}>x</p>")
    assert caught.value.reason == "page_too_complex"
    assert time.perf_counter() - start < 10  # measured 0.1 s; the parser alone takes 30 s


@pytest.mark.parametrize(
    "html",
    [
        "<a " * 100_000,
        '<a href="' * 40_000,
        f'<p>a<img srcset="{"," * 200_000}">',
        f'<p>a<img srcset="{"a " * 100_000}">',
        f'<base href="http://a/{"a/" * 200_000}">' + "<img src=x>" * 400,
        f'<p>a</p><ol start="{"9" * 200_000}"><li>b</ol>',
    ],
)
def test_hostile_addresses_and_open_tags_end(html):
    # Each took time that grew with the square of its length, or an error (300 kB of the first 5 s).
    start = time.perf_counter()
    with contextlib.suppress(Rejected):
        read(html)
    assert time.perf_counter() - start < 10


def test_sources_of_a_set():
    html = '<img srcset="/a,b.jpg 1x,/c.jpg 3x, /d.jpg, /e.jpg 1.2.3x, /f.jpg 2w 5h">'
    (image,) = extract_document(html, URL).parts
    assert isinstance(image, Image)
    names = [url.rsplit("/", 1)[1] for url in image.urls]
    assert names == ["c.jpg", "f.jpg", "a,b.jpg", "d.jpg", "e.jpg"]


def test_long_values_are_no_attributes():
    path = " ".join(f"L {n} {n}" for n in range(20_000))
    image = "data:image/png;base64," + "AB/=" * 20_000
    assert read(f"<svg><path d='{path}'/></svg><p>a</p><img src=\"{image}\">") == f"a[{image}]"


def test_many_elements_without_depth_are_read():
    html = "<p>word <br>" * 10_000 + "<a name=x>" * 10_000 + "<ul>" + "<li>item" * 10_000
    assert len(re.findall("item", read(html))) == 10_000


def test_depth_below_the_limit_is_read():
    assert read("<div>" * 140 + "deep" + "</div>" * 140) == "deep"


def test_addresses():
    assert absolute_url(URL, "../x.jpg") == "http://site.example/articles/x.jpg"
    assert absolute_url(URL, "?a=b c") == "http://site.example/articles/2024/page.html?a=b%20c"
    assert absolute_url(URL, "http://x/%20%C3%A9é") == "http://x/%20%C3%A9%C3%A9"
    assert absolute_url(URL, "ftp://x/y.jpg") is None
