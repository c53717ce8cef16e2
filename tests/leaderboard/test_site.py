"""The site: whole, the same every time, inert whatever a record says, and at work in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from prunebench.bench.adversarials import Pairs, pack_pairs
from prunebench.bench.beyond import Best, Beyond
from prunebench.bench.errors import PrunebenchError
from prunebench.bench.files import replace_folder, sha256_of, write_bytes
from prunebench.bench.outcomes import pairs_path
from prunebench.leaderboard.papers import PAPERS
from prunebench.leaderboard.render.text import clean
from prunebench.leaderboard.site import assets, figure, folder, pages, plots, preview, row_page
from prunebench.leaderboard.table import rank, read
from tests.support.records import make, refusal, save

HOSTILE = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "\"><svg onload='window.pwned=1'>",
    "</script><script>window.pwned=1</script>",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "javascript:window.pwned=1",
    '<a href="http://evil.example">x</a>',
    "../../../etc/passwd",
    "..",
    "/etc/passwd",
    "a\\..\\b",
    "&lt;b&gt;",
    "$\\href{http://evil.example}{x}$",
    "right\u202eto left",
    "\ud800",
    "nul\x00l",
    "\x1b[31m",
    "x" * 5000,
    " ",
    "CON",
    "%{fullData.name}",
)
PUBLISHED = {paper.url for papers in PAPERS.values() for paper in papers}
FLAG = {"name": "black-box-wins", "value": 0.0, "threshold": 1.0, "sentence": "Square fools 7 of the survivors."}
ROWS = ("imp-s0.95", "imp-shuffle=true-s0.95", "magnitude-s0.95", "random-s0.95", "dense-s0")
CURVE = [{"eps": "0.1", "robust": 70}, {"eps": "1/5", "robust": 20}]


def pairs(channels=1):
    images = np.arange(2 * channels * 4, dtype=np.uint8).reshape(2, channels, 2, 2)
    return pack_pairs(Pairs(np.array([3, 8]), np.array([5, 1]), np.array([6, 7]), images, 255 - images))


def fill(folder, name="imp", text="plain", file="refused", *, shown=None):
    """Records of a method `name`, its shuffle and three others, with `text` wherever a record has room for it."""
    kept = pairs() if shown is None else shown
    for seed in range(3):
        flags = [FLAG | {"value": 7.0 if seed else 0.0, "sentence": f"{FLAG['sentence']} {text}"}]
        common = {
            "data": {"name": text},
            "env": {"torch": text, text: 1, "device": text},
            "notes": {text: text},
            "cost": {"device": text, "stages": [{"name": text, "passes": 2_900_000, "seconds": None}]},
        }
        score = {"weak": {text: 60 + seed}, "curve": CURVE, "flags": flags}
        record = make(name, 0.95, seed, robust=50 + seed, score=score, pairs=sha256_of(kept), **common)
        write_bytes(pairs_path(save(folder, record, f"a-seed{seed}")), kept)
        save(folder, make("random", 0.95, seed, robust=20 + seed, **common), f"b-seed{seed}")
        save(folder, make("magnitude", 0.95, seed, robust=40 - seed, **common), f"d-seed{seed}")
        save(folder, make(name, 0.95, seed, robust=10, job={"options": {"shuffle": True}}, **common), f"e-seed{seed}")
        save(folder, make("dense", 0.0, seed, robust=60 + seed, **common), f"c-seed{seed}")
    refusal(reason=text, refused=text, file=text).save(folder / f"{file}.json")
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("plain") / "records")


@pytest.fixture(scope="module")
def made(records):
    folder.write(records, records.parent / "site")
    return records.parent / "site"


class Page(HTMLParser):
    """What a page is made of: its elements with the names of their attributes, its texts, links, and data."""

    def __init__(self, data):
        super().__init__()
        self.shape, self.values, self.texts, self.data, self.open = [], [], [], [], []
        self.feed(data.decode())
        self.close()
        assert self.open == [], "an element is not closed"

    def handle_starttag(self, tag, attributes):
        self.shape.append((tag, *sorted(name for name, _ in attributes)))
        self.values += [(tag, name, value) for name, value in attributes]
        if tag not in {"meta", "link", "img", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.shape.append((f"/{tag}",))

    def handle_data(self, data):
        (self.data if self.open and self.open[-1] == "script" else self.texts).append(data)

    def links(self):
        """All addresses but those of the papers, which are fixed in the code and followed by readers alone."""
        found = [value for _, name, value in self.values if name in {"href", "src"} and not value.startswith("data:")]
        return [link for link in found if link not in PUBLISHED]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def html_pages(folder):
    return {name: Page(data) for name, data in contents(folder).items() if name.endswith(".html")}


def test_the_provenance_tells_of_attacks_that_were_not_exact():
    exact, tf32 = make(), make(seed=1, schema=8, attack_arithmetic={"name": "tf32", "repaired": 3})
    rows = dict(row_page.provenance([exact, tf32], [Path("a.json"), Path("b.json")]).rows)
    absent = rows["proposals sha256"][0]
    assert rows["attacks in"] == (absent, "tf32") and rows["attacked again in float32"] == (absent, "3")
    assert not {"attacks in", "attacked again in float32"} & {
        name for name, _ in row_page.provenance([exact], [Path("a")]).rows
    }


def test_a_page_for_the_board_and_one_for_each_row(made):
    names = {f"entries/digits-linf-{name}.html" for name in ROWS}
    assert set(html_pages(made)) == {"index.html", "compare.html", "boards/digits-linf.html", *names}
    assert {path.name for path in (made / "assets").iterdir()} == {
        "charts.css",
        "compare.js",
        "icon.svg",
        "plotly.js",
        "site.css",
        "site.js",
        "tables.css",
        "tables.js",
    }
    text = " ".join(html_pages(made)["index.html"].texts)
    for shown in (
        "imp",
        "0.95",
        "51.0 [48.5, 53.5]",
        "+12.0 [+7.0, +17.0]",
        "better",
        "3 seeds detect a true difference",
        "official",
        "imp is highest: 51.0 [48.5, 53.5] %, +12.0 [+7.0, +17.0] points against magnitude",
        "It is clearly above the other method.",
        "1 of 5 rows carries a flag: black-box-wins (1).",
        "refused.json",
        "Unpruned nets",
        "A difference is the robust accuracy of the pruner minus that of the control",
    ):
        assert shown in text, shown
    text = " ".join(html_pages(made)["boards/digits-linf.html"].texts)
    for shown in (
        "Square fools 7 of the survivors.",
        "The message for the seed with its highest value",
        "There is no chart of the sizes of kept weights: it needs the nets of two methods",
    ):
        assert shown in text, shown


def test_the_page_of_a_row_shows_counts_flags_and_where_they_come_from(made, records):
    page = html_pages(made)["entries/digits-linf-imp-s0.95.html"]
    text = " ".join(page.texts)
    record = read(records)[Path("digits-linf/a-seed0.json")]
    for shown in (
        "50 of 100: 50.0 % [40.4, 59.6]",
        "80 of 100: 80.0 % [71.1, 86.7]",
        "plain alone",
        "60 of 100",
        "eps 1/5",
        "20 of 100",
        "0.9500, 50 kept",
        "2,900,000 passes, time unknown",
        "\u26a0 up",
        "down",
        record.sha256,
        record.protocol.sha256,
        record.net.sha256,
        record.data.sha256,
        record.outcomes,
        "image 3: 5",
        "env torch",
    ):
        assert shown in text, shown
    for shown in ("imp minus magnitude", "imp minus imp:shuffle=true", "imp minus random", "+12.0 [+7.0, +17.0]"):
        assert shown in text, shown
    assert sum(tag == "img" for tag, *_ in page.shape) == 2 * 2 * 3  # two pairs, three seeds
    assert text.count("Square fools 7") == 4  # once at the head for two seeds, and a line a seed


def test_every_page_is_sound_html(made):
    for name, page in html_pages(made).items():
        for link in page.links():
            assert not urlsplit(link).scheme and not urlsplit(link).netloc, link
            target = (made / name).parent / unquote(urlsplit(link).path) if urlsplit(link).path else made / name
            assert target.is_file(), link
            anchors = (
                [v for _, n, v in Page(target.read_bytes()).values if n == "id"] if target.suffix == ".html" else []
            )
            assert len(set(anchors)) == len(anchors)
            assert urlsplit(link).fragment in {"", *anchors}
        assert ("html", "lang", "en") in page.values and ("meta", "name", "viewport") in page.values
        tags = [tag for tag, *_ in page.shape]
        assert tags.count("title") == tags.count("main") == tags.count("h1") == 1
        assert tags.count("caption") == tags.count("table") == tags.count("thead") > 0
        assert all("scope" in names for tag, *names in page.shape if tag == "th")
        assert all("alt" in names for tag, *names in page.shape if tag == "img")
        assert all(json.loads(data) for data in page.data)


def test_no_page_asks_the_network(made):
    """A link to a paper is not a request: only readers follow it."""
    links = re.compile("|".join(f'href="{re.escape(url)}"' for url in PUBLISHED).encode())
    for name, data in contents(made).items():
        if name.endswith(".html") or name.startswith(("assets/site.", "assets/compare.")):
            assert not re.search(rb"https?:|//[a-z]", links.sub(b"", data.replace(b"// ", b""))), name


def test_the_same_records_give_the_same_bytes(made, records, tmp_path):
    moved = shutil.copytree(records, tmp_path / "elsewhere")
    folder.write(moved, tmp_path / "again")
    folder.write(moved, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(made)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.fixture(scope="module")
def plain_shapes(tmp_path_factory):
    """Of a method that nobody has published, as no hostile name is."""
    source = fill(tmp_path_factory.mktemp("novel") / "records", "novel")
    found = pages.pages(rank(read(source)), read(source), source)
    return sorted(Page(data).shape for name, data in found.items() if name.endswith(".html"))


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_a_record_is_nothing_but_text(hostile, plain_shapes, tmp_path):
    source = fill(tmp_path / "records", hostile, hostile)
    found = pages.pages(rank(read(source)), read(source), source)
    shapes = sorted(Page(data).shape for name, data in found.items() if name.endswith(".html"))
    assert shapes == plain_shapes
    for name, data in found.items():
        assert re.fullmatch(r"((entries|assets|boards|records)/)?[a-z0-9][a-z0-9.=_-]*", name), name
        assert len(name) < 150
        if name.endswith(".html"):
            page = Page(data)
            assert not [link for link in page.links() if urlsplit(link).scheme or link.startswith("/")]
            assert not re.search(r"[<>]", "".join(page.data)), "JSON could end its element"
            assert clean(hostile)[:100] in "".join(page.texts) or name == "compare.html"
    boards = [(board, [far] * len(board.rows)) for board in rank(read(source)).boards for far in (None, np.ones(2))]
    drawn = [plot.figure for board, far in boards for plot in plots.of_board(board, far)]
    drawn.append(slack(make(hostile, beyond=beaten(50, 3))))
    for trace in (trace for shown in drawn for trace in shown["data"]):
        for text in (trace["name"], *trace["hovertext"]):
            assert not re.search(r"<(?!/?b>|br>)", text)


@pytest.mark.parametrize("hostile", HOSTILE[:2])
def test_the_test_above_sees_what_is_not_escaped(hostile, plain_shapes, tmp_path, monkeypatch):
    source = fill(tmp_path / "records", hostile, hostile)
    ranking = rank(read(source))
    environment = pages._environment(ranking, "")
    environment.autoescape = False
    monkeypatch.setattr(pages, "_environment", lambda *_: environment)
    found = pages.pages(ranking, read(source), source)
    try:
        shapes = sorted(Page(data).shape for name, data in found.items() if name.endswith(".html"))
    except AssertionError:
        return
    assert shapes != plain_shapes


def test_names_that_differ_only_in_case_have_pages_of_their_own(tmp_path):
    for i, name in enumerate(("imp", "IMP", "Imp", "i/mp", "i mp")):
        save(tmp_path / "records", make(name), f"{i}")
    folder.write(tmp_path / "records", tmp_path / "site")
    names = [path.name.lower() for path in (tmp_path / "site" / "entries").iterdir()]
    assert len(set(names)) == 5


def test_pictures_that_cannot_be_shown_are_accounted_for(tmp_path):
    save(tmp_path / "a", make(pairs="e" * 64))
    folder.write(tmp_path / "a", tmp_path / "site")
    text = " ".join(html_pages(tmp_path / "site")["entries/digits-linf-imp-s0.9.html"].texts)
    assert "imp-s0.9-seed0.pairs.npz is missing beside the record" in text
    fill(tmp_path / "b", shown=pairs(channels=2))
    folder.write(tmp_path / "b", tmp_path / "site")
    text = " ".join(html_pages(tmp_path / "site")["entries/digits-linf-imp-s0.95.html"].texts)
    assert "Images of shape (2, 2, 2) cannot be shown" in text


def test_colour_pictures_are_shown(tmp_path):
    fill(tmp_path / "records", shown=pairs(channels=3))
    folder.write(tmp_path / "records", tmp_path / "site")
    page = html_pages(tmp_path / "site")["entries/digits-linf-imp-s0.95.html"]
    assert sum(tag == "img" for tag, *_ in page.shape) == 12


def test_other_pairs_than_the_record_names_are_refused(tmp_path):
    fill(tmp_path / "records")
    write_bytes(tmp_path / "records" / "digits-linf" / "a-seed1.pairs.npz", pairs(channels=3))
    with pytest.raises(
        PrunebenchError, match=r"a-seed1.pairs.npz is not the recorded file of image pairs: its sha256 differs"
    ):
        folder.write(tmp_path / "records", tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_the_picture_beside_links_shows_the_leading_board(made, records, tmp_path):
    """imp, the more robust of two methods, comes first and in its blue; the tag names the file, or its address."""
    picture = Image.open(made / "preview.png")
    assert (picture.format, picture.size) == ("PNG", (1200, 630))
    wide = picture.crop((400, preview.TOP, 1010, preview.BOTTOM))
    blue, ink = (np.all(np.array(wide) == colour, axis=-1) for colour in ((0x15, 0x67, 0xDE), (0x1C, 0x21, 0x26)))
    assert blue.any() and ink.any() and np.nonzero(blue)[0].mean() < np.nonzero(ink)[0].mean()  # above magnitude
    assert '<meta property="og:image" content="preview.png">' in (made / "index.html").read_text()
    described = '<meta property="og:image:alt" content="digits-linf, robust accuracy of its methods'
    assert described in (made / "index.html").read_text()
    assert '<meta property="og:image" content="../preview.png">' in (made / "boards/digits-linf.html").read_text()
    for address in ("https://example.org/board", "https://example.org/board/"):
        folder.write(records, tmp_path / "site", address)
        for page in (tmp_path / "site" / "index.html", *(tmp_path / "site" / "entries").iterdir()):
            assert '<meta property="og:image" content="https://example.org/board/preview.png">' in page.read_text()


@pytest.mark.parametrize("address", ["example.org", "javascript:alert(1)", 'https://x.org/"><script>', ""])
def test_an_address_that_is_none_is_refused(address, records, tmp_path):
    with pytest.raises(PrunebenchError, match=r"--address .* is no address of a site; write one like https://"):
        folder.write(records, tmp_path / "site", address)
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("foreign", ["notes.txt", "entries/mine.html", ".git/config"])
def test_nothing_foreign_is_replaced(made, records, tmp_path, foreign):
    out = shutil.copytree(made, tmp_path / "site")
    folder.write(records, out)  # its own site is replaced
    (out / foreign).parent.mkdir(exist_ok=True)
    (out / foreign).write_text("mine")
    before = contents(out)
    with pytest.raises(PrunebenchError, match=f"holds more than a site of prunebench: {re.escape(foreign)}; move"):
        folder.write(records, out)
    assert contents(out) == before


def test_other_places_are_refused(records, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text("<!doctype html>")
    (tmp_path / "file").write_text("")
    (tmp_path / "nest" / "deep").mkdir(parents=True)
    for name, said in (("folder", "index.html"), ("file", "is a file"), ("nest", "holds more than a site")):
        with pytest.raises(PrunebenchError, match=said):
            folder.write(records, tmp_path / name)
    with pytest.raises(PrunebenchError, match="inside the records"):
        folder.write(records, records / "site")
    with pytest.raises(PrunebenchError, match="There is no folder"):
        folder.write(tmp_path / "none", tmp_path / "site")
    (tmp_path / "free").mkdir()
    folder.write(records, tmp_path / "free")
    for manifest in ("[]", "{", '{"prunebench_site": 1, "files": 3}', '{"prunebench_site": 1, "files": [{}]}'):
        (tmp_path / "free" / folder.MANIFEST).write_text(manifest)
        with pytest.raises(PrunebenchError, match="holds more than a site of prunebench"):
            folder.write(records, tmp_path / "free")


def test_a_failed_run_leaves_the_old_site(made, records, tmp_path, monkeypatch):
    out = shutil.copytree(made, tmp_path / "site")
    before = contents(out)

    def full(folder, _):
        (folder / "index.html").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "_fill", full)
    with pytest.raises(PrunebenchError, match=r"Could not write .*No space left on device.*is kept"):
        folder.write(records, out)
    with pytest.raises(PrunebenchError, match="Could not write"):
        folder.write(records, tmp_path / "new")
    assert contents(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "old").write_text("old")
    rename = Path.rename

    def stubborn(path, target):
        if path.name.endswith(".aside"):
            raise OSError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stubborn)
    with pytest.raises(PrunebenchError, match="Permission denied"):
        replace_folder(tmp_path / "site", lambda aside: (aside / "new").write_text("new"))
    assert contents(tmp_path) == {"site/old": b"old"}


def test_the_widget_becomes_a_script_or_is_refused():
    assert "window.DataTable=b;" in assets.as_script("var b=1;export{a as A,b as default};\n/* licence */")
    for module in ("var b=1;", "export{a as A};", "export{b as default};export{c as d};"):
        with pytest.raises(PrunebenchError, match="install the version of itables"):
            assets.as_script(module)


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    """WCAG 2.1: from 1 (equal) to 21 (black on white)."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_series_stand_out_in_both_themes(made):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    themes = re.findall(r":root \{([^}]*)\}", (made / "assets" / "site.css").read_text())
    series = re.findall(r":root \{([^}]*)\}", (made / "assets" / "charts.css").read_text())
    assert len(themes) == len(series) == 2
    for theme in map(str.__add__, themes, series):
        colour = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", theme))
        for ground in ("page", "card"):
            assert min(contrast(colour[name], colour[ground]) for name in ("text", "muted", "accent")) >= 4.5
        assert contrast(colour["warn-text"], colour["warn-page"]) >= 4.5
        assert min(contrast(colour[f"k{i}"], colour["card"]) for i in range(figure.SERIES)) >= 3


def beaten(robust, by, text="best-1"):
    """`by` of `robust` images survive AutoAttack only."""
    return Beyond(best=Best(suite=text, robust=robust - by, by={text: by}, long=0, passes=0))


def slack(*records):
    """The plot of what stronger attacks take away, of the board of `records`; None if it has none."""
    (board,) = rank({Path(f"{i}.json"): record for i, record in enumerate(records)}).boards
    drawn = plots.of_board(board, [None] * len(board.rows))
    return next((plot.figure for plot in drawn if plot.title == "AutoAttack and best known"), None)


def test_slack_is_the_mean_over_seeds_with_the_interval_of_the_paired_test():
    """2, 4 and 6 images of 100 lost: sd 2, and t(.975, 2) = 4.303 standard errors of 2 / sqrt(3) reach 0 and 8.97."""
    rows = [make("imp", 0.95, seed, robust=50 + seed, beyond=beaten(50 + seed, 2 + 2 * seed)) for seed in range(3)]
    found = slack(*rows, make("magnitude", 0.95), make("awt", 0.9, beyond=beaten(50, 7)))
    assert found["layout"]["xaxis"]["ticktext"] == ["0.9", "0.95"]
    by_name = {trace["name"]: trace for trace in found["data"]}
    assert by_name.keys() == {"imp", "awt"}  # nobody attacked magnitude again
    assert by_name["imp"]["y"] == pytest.approx((4.0,)) and by_name["awt"]["y"] == pytest.approx((7.0,))
    bars = by_name["imp"]["error_y"]
    assert (bars["array"], bars["arrayminus"]) == (pytest.approx((4.968,), abs=1e-3), pytest.approx((4.0,)))
    assert by_name["awt"]["error_y"]["array"] == by_name["awt"]["error_y"]["arrayminus"] == [0.0]  # one seed
    assert "slack 4.0 [0.0, 9.0] points" in by_name["imp"]["hovertext"][0]


def test_no_plot_of_slack_without_the_best_known_number():
    assert slack(make("imp"), make("magnitude")) is None
    two_suites = [make(seed=seed, beyond=beaten(50, 1, f"best-{seed}")) for seed in range(2)]
    assert slack(*two_suites) is None


# In a browser

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium. PRUNEBENCH_BROWSER=required: its absence is a failure, as in CI."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        if os.environ.get("PRUNEBENCH_BROWSER") == "required":
            pytest.fail("There is no Chromium, and PRUNEBENCH_BROWSER=required: install Debian's package chromium.")
        pytest.skip("There is no Chromium: install Debian's package chromium to test the site in a browser.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield started
        started.close()


class Watched:
    """A page whose complaints, and requests that leave the disk, are kept."""

    def __init__(self, browser, **options):
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(60_000)
        self.complaints = []
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", self.asked)

    def asked(self, request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(request.url)

    def open(self, path):
        self.page.goto(path.as_uri())
        if "<!doctype html>" in path.read_text():
            self.page.wait_for_selector("html.ready", state="attached")

    def too_wide(self):
        return self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


@pytest.fixture
def watched(browser):
    made = Watched(browser, viewport={"width": 1280, "height": 900})
    yield made
    made.page.close()


def shows(page, place, *texts, table="[id='digits-linf:table1'] + table"):
    """Wait until the visible cells at `place` in the lines of the table are these, from the top."""
    from playwright.sync_api import expect

    expect(page.locator(f"{table} tbody tr:visible > :nth-child({place})")).to_have_text(list(texts), timeout=60_000)


def test_small_tables_switch_find_and_lead_to_an_entry(watched, made):
    watched.open(made / "index.html")
    page = watched.page
    shows(page, 1, "1", "2", "control")
    shows(page, 2, "imp", "magnitude", "random")
    shows(page, 5, "+12.0 [+7.0, +17.0] better", "", "")
    switch = page.get_by_label("Show other controls")
    switch.focus()
    page.keyboard.press("Space")
    shows(page, 2, "imp", "magnitude", "random", "imp:shuffle=true")
    page.keyboard.press("Space")
    page.get_by_label("Find a method").fill("imp")
    shows(page, 2, "imp", "imp:shuffle=true")
    assert page.url.endswith("index.html?q=imp") and page.inner_text("output") == "Rows: 2 of 5"
    page.reload()
    shows(page, 2, "imp", "imp:shuffle=true")
    page.get_by_label("Find a method").fill("")
    shows(page, 2, "imp", "magnitude", "random")
    assert page.locator("a.sign").get_attribute("aria-label") == "Flags: black-box-wins"
    page.get_by_role("link", name="imp", exact=True).click()
    page.wait_for_url("**/entries/digits-linf-imp-s0.95.html")
    page.wait_for_selector("html.ready", state="attached")
    assert page.inner_text("h1") == "imp at sparsity 0.95"
    assert page.locator(".pairs img").first.evaluate("image => [image.naturalWidth, image.complete]") == [2, True]
    page.get_by_role("link", name="All of digits-linf").click()
    page.wait_for_url("**/index.html#row:digits-linf-imp-s0.95")
    page.goto((made / "index.html").as_uri() + "#row:digits-linf-imp-shuffle=true-s0.95")
    shows(page, 2, "imp", "magnitude", "random", "imp:shuffle=true")  # a permalink shows what the switch hides
    assert watched.complaints == []


def test_the_first_page_loads_neither_plots_nor_the_table_widget(watched, made):
    asked = []
    watched.page.on("request", lambda request: asked.append(Path(unquote(urlsplit(request.url).path))))
    watched.open(made / "index.html")
    watched.page.wait_for_load_state("networkidle")
    assert {path.name for path in asked} - {"icon.svg"} == {"index.html", "site.css", "charts.css", "site.js"}
    asked.clear()
    watched.open(made / "boards" / "digits-linf.html")  # the twin: a page with plots does
    watched.page.locator(".plot").first.scroll_into_view_if_needed()
    watched.page.wait_for_selector(".plot.drawn", state="attached")
    assert {"plotly.js", "tables.js"} <= {path.name for path in asked}


def test_a_plot_has_room_for_every_line_of_its_legend(watched, made):
    """An entry takes 210 pixels and the margins 68: in 670, five entries take three lines of 19 pixels, and not two."""
    page, path = watched.page, made / "boards" / "digits-linf.html"
    watched.open(path)
    page.set_viewport_size({"width": 700, "height": 900})
    beside = 700 - page.locator(".plot .canvas").first.evaluate("canvas => canvas.clientWidth")
    page.set_viewport_size({"width": 670 + beside, "height": 900})
    watched.open(path)
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    page.wait_for_selector(".plot.drawn", state="attached")
    entries = [entry.bounding_box() for entry in plot.locator(".legend .traces").all()]
    assert len(entries) == 5 and len({round(box["y"]) for box in entries}) == 3
    assert plot.locator(".main-svg").first.bounding_box()["height"] == pytest.approx(340 + 3 * 19, abs=1)


def test_the_table_of_all_rows_sorts_and_filters(watched, made):
    watched.open(made / "boards" / "digits-linf.html")
    page = watched.page
    rows = {"table": "#table-rows"}
    shows(page, 2, "dense", "imp", "magnitude", "random", "imp:shuffle=true", **rows)
    head = page.locator("#table-rows thead th", has_text="Robust %")
    head.click()
    page.wait_for_selector("#table-rows th[aria-sort=ascending]")
    # log-odds of 117.5 / 301 and 153.5 / 301, +- t(.975, 2) * .01 / sqrt(3) over m (1 - m)
    shows(page, 2, "imp:shuffle=true", "random", "magnitude", "imp", "dense", **rows)
    assert page.locator("#table-rows td:nth-child(4)").nth(2).inner_text() == "39.0 [36.6, 41.5]"
    head.click()
    page.wait_for_selector("#table-rows th[aria-sort=descending]")
    shows(page, 2, "dense", "imp", "magnitude", "random", "imp:shuffle=true", **rows)
    page.get_by_label("Filter").first.fill("magn")
    shows(page, 2, "magnitude", **rows)
    page.get_by_label("Filter").first.fill("")
    page.locator("#table-rows th", has_text="Sparsity").get_by_role("button", name="Filter by this column").click()
    page.locator(".dtcc-dropdown input").fill("0.95")
    shows(page, 2, "imp", "magnitude", "random", "imp:shuffle=true", **rows)
    page.keyboard.press("Escape")
    assert watched.complaints == []


def test_two_methods_are_compared_by_the_boards_own_test(watched, made):
    """imp has 50, 51, 52 of 100 and magnitude 40, 39, 38: 10, 12 and 14 points by seed, the other way round -12."""
    watched.page.goto((made / "compare.html").as_uri() + "?at=digits-linf+at+0.95&a=imp&b=magnitude")
    watched.page.wait_for_selector("html.ready", state="attached")
    page = watched.page
    said = page.locator("#Compared .verdict")
    assert said.inner_text().startswith("imp minus magnitude: +12.0 [+7.0, +17.0] points of robust accuracy; better")
    shows(page, 4, "+10.0", "+12.0", "+14.0", table="#Compared table >> nth=1 >>")
    page.get_by_label("Method").select_option("magnitude")
    page.get_by_label("minus").select_option("imp")
    assert said.inner_text().startswith("magnitude minus imp: -12.0 [-17.0, -7.0] points of robust accuracy; worse")
    assert page.url.endswith("?at=digits-linf+at+0.95&a=magnitude&b=imp")
    page.get_by_label("minus").select_option("imp:shuffle=true")
    assert said.inner_text() == "magnitude minus imp:shuffle=true: the board does not test this pair."
    page.get_by_label("minus").select_option("magnitude")
    assert said.inner_text() == "Choose two different methods."
    assert watched.complaints == []


def test_plots_are_drawn_and_follow_the_theme(watched, made):
    from playwright.sync_api import expect

    watched.page.emulate_media(color_scheme="light")
    watched.open(made / "boards" / "digits-linf.html")
    assert watched.page.locator(".plot").count() == 2
    for plot in watched.page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        watched.page.wait_for_selector(f"#{plot.get_attribute('id')}.drawn", state="attached")
    assert watched.page.locator(".plot svg.main-svg .scatterlayer .trace").count() >= 2 * 2
    ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    ground = "getComputedStyle(document.body).backgroundColor"
    light = watched.page.evaluate(ink), watched.page.evaluate(ground)
    watched.page.emulate_media(color_scheme="dark")
    watched.page.wait_for_selector("html.dark", state="attached")
    expect(watched.page.locator(".plot .xtick text").first).to_have_css("fill", "rgb(227, 231, 234)")
    dark = watched.page.evaluate(ink), watched.page.evaluate(ground)
    assert (light, dark) == (("rgb(28, 33, 38)", "rgb(246, 247, 248)"), ("rgb(227, 231, 234)", "rgb(18, 21, 24)"))
    assert watched.complaints == []


def test_charts_and_findings_need_no_script(browser, made):
    """The title of the first chart and the first finding are the verdict of the records: imp is 12 points ahead."""
    still = Watched(browser, java_script_enabled=False, color_scheme="dark")
    still.page.goto((made / "index.html").as_uri())
    chart = still.page.locator("[id='digits-linf:chart1']")
    assert chart.locator("h3").inner_text() == "imp beats magnitude pruning at 0.95"
    assert chart.locator("svg .mark").count() >= 3 and chart.locator("svg text", has_text="51.0").count() == 1
    finding = still.page.locator(".findings li").first.inner_text()
    assert finding == "Does any method beat plain magnitude pruning? Every method clearly beats magnitude at 0.95."
    assert still.page.locator("tr.folded").is_hidden()
    still.page.get_by_label("Show other controls").check()
    assert still.page.locator("tr.folded").is_visible()
    still.page.close()


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_a_phone_shows_every_page_without_scrolling_sideways(browser, made, scheme):
    phone = Watched(browser, viewport={"width": 390, "height": 844}, color_scheme=scheme)
    for name in html_pages(made):
        phone.open(made / name)
        assert not phone.too_wide(), name
    assert phone.complaints == []
    phone.page.close()


def test_hostile_records_are_inert_in_the_browser(watched, tmp_path):
    text = "".join(HOSTILE[:8])
    fill(tmp_path / "records", text, text)
    folder.write(tmp_path / "records", tmp_path / "site")
    watched.page.set_viewport_size({"width": 390, "height": 844})
    for name in html_pages(tmp_path / "site"):
        watched.open(tmp_path / "site" / name)
        assert watched.page.evaluate("window.pwned") is None
        assert watched.page.locator("svg a, a[href^='javascript']").count() == 0
        assert {link.get_attribute("href") for link in watched.page.locator("a[href^='http']").all()} <= PUBLISHED
        assert not watched.too_wide(), name
    assert watched.complaints == []


def test_the_watch_above_hears_and_sees(watched, tmp_path):
    page = "<img src=http://127.0.0.1:9/x.png><script>console.error('heard')</script><p style=width:3000px>wide"
    (tmp_path / "bad.html").write_text(page)
    watched.open(tmp_path / "bad.html")
    assert "http://127.0.0.1:9/x.png" in watched.complaints
    assert "heard" in watched.complaints
    assert watched.too_wide()
