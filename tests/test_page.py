"""The page: one file, no network, whatever the names hold; the numbers in it are those of the table."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from example_records import checkpoint, record
from PIL import Image

from evaluate.leaderboard import curves, page
from evaluate.leaderboard.table import BASELINES, SMOKE, build
from evaluate.records import Score, Status, write
from evaluate.storage import slug

HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>\u2028&amp;"


class Reader(HTMLParser):
    """Elements with their attributes, and the text of scripts and styles in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self.open = ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open = tag if tag in self.texts else ""

    def handle_endtag(self, tag):
        self.open = ""

    def handle_data(self, data):
        if self.open:
            self.texts[self.open].append(data)


def table():
    hostile = checkpoint(HOSTILE, label=HOSTILE)
    records = [
        record(correct=[1, 1, 1, 1, 1, 0]),
        record(correct=[1, 0, 1, 1, 0, 0], checkpoint=hostile, dataset="shapeworld", notes=[HOSTILE]),
        record("dino-s0", correct=[0, 0, 0, 0, 0, 0], protocol={"k": 10}),
        record("raw pixels", checkpoint=checkpoint("raw pixels", kind="baseline", objective="none")),
    ]
    missing = Status(hostile, "knn", "cifar10", "skipped", HOSTILE, "download it")
    return build(records, [missing], problems=[HOSTILE])


@pytest.fixture(scope="module")
def source():
    return page.render(table())


@pytest.fixture(scope="module")
def reader(source):
    return Reader(source)


def test_the_page_asks_for_nothing_from_elsewhere(source, reader):
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
        assert not attributes.keys() & {"src", "srcset", "data", "action", "style"}
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttp|import\(", source)


def test_the_policy_admits_exactly_the_style_and_the_program_of_the_page(reader):
    policy = next(a["content"] for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    data, program = reader.texts["script"]
    for rule, content in (("script-src", program), ("style-src", reader.texts["style"][0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    json.loads(data)


def test_no_name_becomes_markup(source, reader):
    assert [tag for tag, _ in reader.elements].count("script") == 2
    assert "<img" not in source and "\u2028" not in source
    data = json.loads(reader.texts["script"][0])
    assert HOSTILE in {row["name"] for row in data["rows"]} and data["problems"] == [HOSTILE]
    assert "innerHTML" not in reader.texts["script"][1] and "insertAdjacentHTML" not in reader.texts["script"][1]


def test_the_page_holds_every_score_with_its_marks_and_provenance(reader):
    data, expected = json.loads(reader.texts["script"][0]), table()
    for row, wanted in zip(data["rows"], expected.rows, strict=True):
        assert row["name"] == wanted.checkpoint["name"]
        found = {}
        for shared, extra, seconds, memory, date, file, cells in row["records"]:
            assert data["shared"][shared] == {"commit": "abc123"} and date == "2026-01-01T00:00:00+00:00"
            assert (seconds, memory, file) == (None, None, None)
            assert data["extra"][extra]["unit"] == "image"
            found |= {cell[0]: cell[1:] for cell in cells}
        for i, column in enumerate(expected.columns):
            cell = wanted.cells.get(column)
            assert (i in found) == (cell is not None)
            if cell:
                value, low, high, n, mark = found[i]
                score = cell.score
                assert (value, low, high) == pytest.approx((score.value, score.low, score.high), rel=1e-5)
                assert (n, mark) == (score.n, 2 if cell.best else int(cell.tied))
    assert {c["differing"] for c in data["columns"]} >= {"k=20, features.token=cls", "k=10, features.token=absent"}
    assert SMOKE in data["notes"] and BASELINES in data["notes"]
    assert [status["remedy"] for status in data["statuses"]] == ["download it"]


def seeds_table():
    """Two recipes of three seeds, one checkpoint of its own, and a task that one seed alone has."""
    shares = {"bits": (0.9, 0.5, 0.7), "dino": (0.66, 0.66, 0.66)}
    records = [
        record(f"{name}-s{s}", rng.random(400) < share, checkpoint=checkpoint(f"{name}-s{s}", seed=s))
        for name, each in shares.items()
        for s, share in enumerate(each)
        for rng in [np.random.default_rng(s)]
    ]
    lone = record("bits-s1", checkpoint=checkpoint("bits-s1", seed=1), task="linear")
    return build([*records, record("alone", checkpoint=checkpoint("alone", parent="dino-s0"), correct=[0] * 400), lone])


def test_the_page_holds_recipes_with_marks_of_their_own():
    table = seeds_table()
    data = page.payload(table)
    (knn,) = [i for i, column in enumerate(data["columns"]) if column["task"] == "knn"]
    for found, wanted in zip(data["seeds"], table.seed_means, strict=True):
        assert [data["rows"][i]["name"] for i in found["rows"]] == [row.checkpoint["name"] for row in wanted.rows]
        (value,) = [each for each in found["values"] if each[0] == knn]
        (spread,) = [spread for column, spread in wanted.values.items() if column.task == "knn"]
        assert value[1:6] == pytest.approx(list(spread), rel=1e-5) and value[6] in (1, 2), "recipes tie"
    marked = {data["rows"][row]["name"]: mark for row, column, mark in data["marks"] if column == knn}
    assert marked["bits-s0"] == 0, "the best seed is no method of its own where seeds are folded"


def test_curves_of_records_and_of_training_are_in_the_page(tmp_path):
    curve = np.linspace([0.1, 0.2], [0.5, 0.4], 10)
    probe = record(HOSTILE, task="linear", outcomes={"curve_top1": curve, "sample_id": np.arange(4)})
    run = checkpoint("trained", images_seen=1000, seed=0)
    trained = record("trained", checkpoint=run)
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"images_seen": 1000, "objective": "bits", "seed": 0}))
    (folder / "log.csv").write_text("images,loss,bit_entropy\n500,0.7,\n1000,0.4,0.9\nnonsense,,\n")
    whole = build([probe, trained])
    data = page.payload(whole, curves.figures(whole), tmp_path)
    (figure,) = data["figures"]
    assert figure["title"].startswith("Linear probing") and figure["lines"][0][2] == pytest.approx(
        curve[:, 0], abs=1e-4
    )
    rows = {row["name"]: row for row in data["rows"]}
    assert rows[HOSTILE]["curves"][0][0][2] == figure["lines"][0]
    assert rows["trained"]["training"] == [["loss", [500, 1000], [0.7, 0.4]]], "a single point is no curve"
    (folder / "run.json").write_text(json.dumps({"images_seen": 2000, "objective": "bits", "seed": 0}))
    assert "training" not in page.payload(whole, (), tmp_path)["rows"][1], "another training of the same name"
    outside = build([record("x", checkpoint=checkpoint("../trained", images_seen=2000))])
    assert "training" not in page.payload(outside, (), folder)["rows"][0]


def test_a_record_on_disk_is_named_in_the_page(tmp_path):
    stored = record()
    stored.path = write(tmp_path, stored)
    data = page.payload(build([stored], root=tmp_path))
    (row,) = data["rows"]
    assert (tmp_path / row["folder"] / data["files"][row["records"][0][5]]).is_file()


def test_pictures_of_a_task_are_named_as_seen_from_the_page_and_none_from_elsewhere(tmp_path):
    for name in ("figures/a b/sheet.png", "figures/data.json", "secret.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    named = ["figures/a b/sheet.png", "figures/data.json", "figures/gone.png", "figures/../secret.png", "/etc/hosts"]
    named += ["javascript:alert(1)", "https://example.org/x.png"]
    whole = build(
        [record("plain"), record("drawn", provenance={"dataset_fingerprint": "data-1", "files": named})],
        root=tmp_path / "records",
    )
    data = page.payload(whole, output=tmp_path / "tables")
    rows = {row["name"]: row["records"][0] for row in data["rows"]}
    assert rows["drawn"][7:] == [["../figures/a%20b/sheet.png", "../figures/data.json"]] and rows["plain"][7:] == []
    assert "secret" not in json.dumps(data), "the list of files is no other part of the provenance"
    assert page.payload(whole)["rows"][0]["records"][0][7:] == []


def test_controls_are_labelled_and_the_table_is_a_table(reader):
    identified = {a["id"] for _, a in reader.elements if "id" in a}
    assert {"search", "task", "dataset", "objective", "protocol", "details", "status"} <= identified
    for tag, attributes in reader.elements:
        if tag == "dialog":
            assert attributes["aria-labelledby"] in identified
    controls = [a for tag, a in reader.elements if tag in ("select", "input")]
    labels = [tag for tag, _ in reader.elements].count("label")
    assert labels == len(controls), "every control has a label around it"
    tags = [tag for tag, _ in reader.elements]
    assert all(tags.count(tag) == 1 for tag in ("main", "h1", "table", "caption", "dialog", "nav"))
    assert {"lang": "en"} in [a for tag, a in reader.elements if tag == "html"]


def wide_table(rows: int, columns: int):
    """A table of the largest size that the page is made for."""
    rng = np.random.default_rng(0)
    records = [
        record(
            f"run-{i}",
            checkpoint=checkpoint(f"run-{i}", weights_digest=hashlib.sha256(f"{i}".encode()).hexdigest()),
            dataset=f"dataset-{j}",
            scores={"top1": Score(value, value - 0.01, value + 0.01, 50_000)},
            outcomes={},
            provenance={"dataset_fingerprint": f"{j}", "seconds": float(rng.integers(1000)), "peak_memory_mb": 4210.5}
            | {"packages": {"torch": "2.12.1"}, "commit": "abc123", "date": f"2026-01-01T00:{i % 60:02}:00+00:00"},
        )
        for i, skill in enumerate(rng.random(rows))
        for j, value in enumerate(np.clip(skill + 0.05 * rng.standard_normal(columns), 0, 1).tolist())
    ]
    for i, each in enumerate(records):
        each.path = (
            Path("results/records")
            / f"run-{i // columns}-0123456789ab"
            / f"knn--dataset-{i % columns}--0123456789ab.json"
        )
    return build(records)


def test_the_bytes_of_a_cell_keep_the_largest_page_below_ten_megabytes():
    cells = 40 * 50
    size = len(page.embed(page.payload(wide_table(40, 50))))
    assert 1000 * 50 * size / cells < 10_000_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A function that opens a page in headless Chromium and returns the document it has become."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium on PATH to open the page with")
    folder = tmp_path_factory.mktemp("browser")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    quiet += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr"]
    quiet += ["--host-resolver-rules=MAP * ~NOTFOUND"]  # what the browser itself asks its maker stays here too

    def opened(content: str, script: str = "", size: str = "1400,1000") -> str:
        if script:  # a visitor's hand: the page's own policy would refuse it
            content = re.sub(r"<meta http-equiv[^>]*>", "", content).replace(
                "</body>", f"<script>{script}</script></body>"
            )
        (folder / "page.html").write_text(content)
        command = [program, *quiet, f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"file://{folder}/page.html"]
        command[1:1] = [f"--log-net-log={folder / 'net.json'}", f"--window-size={size}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert not said, f"the console shows {said[:3]}"
        found = set(re.findall(r'"url":"((?:https?|wss?|ftp):[^"]*)"', (folder / "net.json").read_text()))
        asked = {url for url in found if not re.match(r"https?://[a-z0-9.]*\.(google|googleapis|gvt1)\.com/", url)}
        assert not asked, f"the page asked for {asked}"
        return done.stdout

    return opened


def dialog_of(document: str) -> str:
    return document[document.index("<dialog") : document.index("</dialog>")]


@pytest.mark.slow
def test_a_browser_draws_every_row_under_the_policy_of_the_page(browser, source):
    document = browser(source)
    assert "<title>Leaderboard</title>" in document, "a name was executed"
    reader = Reader(document)
    rows = [a for tag, a in reader.elements if tag == "th" and a.get("scope") == "row"]
    assert len(rows) == 4 and '<tr class="baseline">' in document
    assert [a["aria-sort"] for tag, a in reader.elements if "aria-sort" in a] == ["none"] * 4
    spoken = [a["aria-label"] for tag, a in reader.elements if tag == "button" and "tabindex" in a]
    assert len(spoken) == 4 and any(
        text.startswith("83.33, 95 % interval ") and text.endswith(", best") for text in spoken
    )
    assert "1–4 of 4 checkpoints, 3 columns" in document
    assert SMOKE in document


@pytest.mark.slow
def test_a_browser_sorts_filters_and_opens_the_provenance(browser, source):
    click = 'document.querySelector("td button").click()'
    document = browser(source, click)
    dialog = dialog_of(document)
    assert re.match(r"<dialog[^>]* open", dialog) and "abc123" in dialog and "dataset fingerprint" in dialog
    names = r'<span class="name">([^<]*)</span>'
    by_name = browser(source, "document.querySelector('thead button[data-key=\"name\"]').click()")
    assert re.findall(names, by_name)[1:] == ["bits-s0", "dino-s0", "raw pixels"] and 'aria-sort="ascending"' in by_name
    for control, value, others in (("search", "dino", set()), ("protocol", "k = 10", {"bits-s0", "raw pixels"})):
        change = f'const c = document.getElementById("{control}"); c.value = "{value}";'
        document = browser(source, change + 'c.dispatchEvent(new Event("input", {bubbles: true}))')
        shown = re.findall(names, document)
        assert "dino-s0" in shown and not others & set(shown) and (others or len(shown) == 1)


@pytest.mark.slow
def test_a_browser_folds_seeds_and_opens_the_record_of_each(browser):
    content = page.render(seeds_table())
    names = r'<span class="name">([^<]*)</span>'
    document = browser(content)
    assert re.findall(names, document) == ["bits", "dino", "alone"] and "1–3 of 3 methods, 2 columns" in document
    assert document.count("3 seeds</span>") == 2 and "from dino-s0" in document
    assert re.search(r'aria-label="[\d.]+, standard deviation [\d.]+ over 3 seeds, 95 % interval', document)
    assert "100.00" not in document, "a task that one seed alone has is shown as that seed's score"
    opened = 'document.querySelector("td small").closest("button").click();'
    document = browser(content, opened)
    dialog = dialog_of(document)
    assert [name for name in ("bits-s0", "bits-s1", "bits-s2") if name in dialog] == ["bits-s0", "bits-s1", "bits-s2"]
    assert "abc123" not in dialog, "a mean has no provenance of its own"
    document = browser(content, opened + 'document.querySelectorAll(".seeds button")[2].click()')
    dialog = dialog_of(document)
    assert "abc123" in dialog and ">bits-s2</h2>" in dialog and "All seeds" in dialog
    unfold = 'const c = document.getElementById("fold"); c.checked = false;'
    document = browser(content, unfold + 'c.dispatchEvent(new Event("input", {bubbles: true}))')
    assert len(re.findall(names, document)) == 7 and "of 7 checkpoints" in document


@pytest.mark.slow
def test_the_browser_fixture_hears_the_console_and_sees_requests(browser):
    with pytest.raises(AssertionError, match="the console shows"):
        browser("<title>x</title><body></body>", "console.error('loud')")
    with pytest.raises(AssertionError, match="asked for"):
        browser('<title>x</title><body><img src="http://localhost:9/x.png" alt=""></body>')


@pytest.mark.slow
def test_a_browser_draws_figures_and_the_curves_of_a_score(browser):
    heads = np.linspace([0.1, 0.2], [0.5, 0.4], 10)
    outcomes = {"curve_top1": heads, "sample_id": np.arange(4)}
    whole = build([record(HOSTILE, task="linear", outcomes=outcomes), record("dino", task="linear", outcomes=outcomes)])
    content = page.render(whole, curves.figures(whole))
    document = browser(content, 'document.querySelector("td button").click()')
    assert document.count("<polyline") == 3, "two in the figure of the page, one in the dialog"
    assert re.search(r'aria-label="Linear probing[^"]* from 10.00 to 50.00', document)
    assert "<title>Leaderboard</title>" in document, "a name was executed"


@pytest.mark.slow
def test_a_browser_shows_the_pictures_of_a_score_and_the_policy_admits_files(browser, tmp_path):
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "figures" / "sheet.png")
    (tmp_path / "figures" / "bits.json").write_text("{}")
    named = ["figures/sheet.png", "figures/bits.json"]
    drawn = record(HOSTILE, provenance={"dataset_fingerprint": "data-1", "files": named})
    content = page.render(build([drawn], root=tmp_path / "records"), output=tmp_path)
    document = browser(content, 'document.querySelector("td button").click()')
    assert '<img src="figures/sheet.png" alt="sheet.png"' in document and '<a href="figures/bits.json">' in document
    there = f'<img src="file://{tmp_path}/figures/sheet.png" alt=""></main>'
    browser(content.replace("</main>", there))  # a refusal would be heard on the console


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1400,1000", "390,844"])
def test_the_page_is_no_wider_than_its_window(browser, source, size):
    wide = "document.title = document.documentElement.scrollWidth + ' of ' + innerWidth"
    found = re.search(r"<title>(\d+) of (\d+)</title>", browser(source, wide, size))
    assert found and int(found[1]) <= int(found[2])


@pytest.mark.slow
def test_arrow_keys_move_between_scores_in_a_browser(browser, source):
    keys = (
        'const second = document.querySelectorAll("td button")[1]; second.focus();'
        'second.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true}));'
        "document.title = document.activeElement.dataset.at"
    )
    row, column = re.findall(r'data-at="(\d),(\d)"', browser(source))[1]
    after = re.search(r"<title>(\d),(\d)</title>", browser(source, keys))
    assert after and after[2] == column and int(after[1]) == int(row) + 2, "it skips the row without a score"


@pytest.mark.slow
def test_a_thousand_checkpoints_by_fifty_columns_are_drawn_page_by_page(browser):
    content = page.render(wide_table(1000, 50))
    assert len(content.encode()) < 10_000_000
    timed = "const t = performance.now(); draw(); document.body.offsetHeight; document.title = performance.now() - t"
    document = browser(content, timed)
    assert "1–50 of 1000 checkpoints, 50 columns" in document and document.count('scope="row"') == 50
    milliseconds = float(re.search(r"<title>([\d.]+)</title>", document)[1])
    assert milliseconds < 2000, f"one page took {milliseconds} ms to draw"


def test_a_name_that_is_no_utf8_is_shown_and_stops_nothing(tmp_path):
    name = b"caf\xe9".decode(errors="surrogateescape")
    text = page.embed({"name": name})
    assert json.loads(text) == {"name": name} and text.encode()
    assert slug(name).isascii() and slug(name) != slug(name + "x")
