"""Is a replay one file that holds the run and nothing of anybody's making that the browser would run?"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from moeviz.config import Knobs, Recipe, SettingsError
from moeviz.host.block import ring_capacity
from moeviz.live import assets, bundle, replay, wire
from moeviz.snapshot import History
from tests.test_live import assert_same, make_rows

HOSTILE = [
    '</script><script>window.__broken = "out"</script>',
    "<!-- <script>",
    "]]></title><img src=x onerror=window.__broken=1>",
    '"; window.__broken = 1; //',
    "\u2028window.__broken=1\u2029 ${window.__broken=1} `",
    "'onmouseover='window.__broken=1' \\u003c/script>",
]


class Elements(HTMLParser):
    """The elements of a page as a browser finds them, with their text."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.found, self.inside = [], False
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append([tag, dict(attributes), ""])
        self.inside = True

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.found[-1][2] += data


def told_in(page):
    """What a replay says, and the header and columns of each of its runs."""
    [text] = [text for tag, given, text in Elements(page).found if given.get("id") == "recorded"]
    told = json.loads(text)
    messages = [zlib.decompress(base64.b64decode(run["message"])) for run in told["runs"]]
    return told, [wire.decode(message) for message in messages]


def recorded(rows=None, **more):
    rows = make_rows(1, 16, 40) if rows is None else rows
    _, layers, experts = (len(rows), *rows["load"].shape[1:])
    recipe = Recipe(num_layers=layers, num_experts=experts)
    return replay.Recorded(**({"recipe": recipe, "knobs": Knobs(), "rows": rows} | more))


def noisy_rows(count, num_experts, num_layers=1):
    """Rows that compress as badly as any: every load and every bias is another one."""
    rows = make_rows(num_layers, num_experts, 2).repeat(-(-count // 2))[:count]
    numbers = np.random.default_rng(1)
    rows["step"] = np.arange(count)
    rows["task_loss"] = numbers.random(count)
    rows["load"] = numbers.integers(0, 8192, rows["load"].shape)
    rows["kept_load"] = rows["load"] // 2
    rows["bias"] = numbers.normal(size=rows["bias"].shape)
    return rows


@pytest.mark.parametrize(
    ("layers", "experts", "dropping"), [(1, 2, "nothing"), (1, 64, "as many"), (3, 16, "any number")]
)
def test_it_holds_the_run(layers, experts, dropping):
    rows = make_rows(layers, experts, 60, dropping)
    versions = {0: Knobs(), 1: Knobs(u=0.1), 2: Knobs(top_k=1), 9: Knobs(top_k=1)}
    run = recorded(rows, labels=[(1, "u 0.003 → 0.1"), (2, "top_k 2 → 1")], versions=versions)
    page = replay.html([run], title="A title", date="2026-11-22", receipt="seed 0")
    told, [(header, columns)] = told_in(page)
    assert_same(columns, rows)
    assert (told["title"], told["date"], told["receipt"]) == ("A title", "2026-11-22", "seed 0")
    assert header["marks"] == [[1, "u 0.003 → 0.1"], [2, "top_k 2 → 1"]]
    assert {int(number): knobs["top_k"] for number, knobs in header["versions"].items()} == {0: 2, 1: 2, 2: 1}
    np.testing.assert_allclose(header["speeds"], rows["steps_per_second"], rtol=5e-3)
    assert (header["recipe"]["num_experts"], header["layers"]) == (experts, layers)


def test_the_same_run_is_the_same_file():
    first, second = (replay.html([recorded()], title="same") for _ in range(2))
    assert first == second


@pytest.mark.parametrize("experts", [16, 64])
def test_what_a_server_keeps_by_default_fits_whole(experts):
    """As many rows as a run may keep, and every number as noisy as can be."""
    rows = noisy_rows(sum(History._rows_in_sight(ring_capacity(1, experts))), experts)
    assert len(rows) > 6_000
    page = replay.html([recorded(rows)], title="long")
    assert len(page) < 10_000_000
    _, [(header, _)] = told_in(page)
    assert header["n"] == len(rows)


@pytest.mark.parametrize(("layers", "experts", "count"), [(1, 128, 10_000), (1, 256, 6_000), (8, 256, 700)])
def test_what_does_not_fit_is_thinned_and_no_more_than_must_be(layers, experts, count):
    rows = noisy_rows(count, experts, layers)
    page = replay.html([recorded(rows)], title="long")
    assert 7_500_000 < len(page) < 10_000_000
    _, [(header, columns)] = told_in(page)
    kept = columns["step"].ravel()
    assert header["n"] < count
    assert (kept[0], kept[-1]) == (0, count - 1)
    assert {rows["task_loss"].argmax(), rows["task_loss"].argmin()} <= set(kept.tolist()), "extremes are kept"


def test_very_many_steps_are_thinned_however_small():
    rows = make_rows(1, 2, 3).repeat(10_000)
    rows["step"] = np.arange(len(rows))
    _, [(header, _)] = told_in(replay.html([recorded(rows)], title="long"))
    assert replay.MOST_STEPS // 2 <= header["n"] <= replay.MOST_STEPS


def test_four_runs_share_the_room():
    runs = [recorded(noisy_rows(4_000, 64), name=name, note=f"u = {name}") for name in "ABCD"]
    page = replay.html(runs, title="four")
    told, decoded = told_in(page)
    assert len(page) < 10_000_000
    assert [(run["name"], run["note"]) for run in told["runs"]] == [(name, f"u = {name}") for name in "ABCD"]
    assert len({header["n"] for header, _ in decoded}) == 1


def test_nothing_to_replay_is_refused_in_a_sentence():
    with pytest.raises(SettingsError, match=r"Run A has no step yet.*Train it first\."):
        replay.html([recorded(make_rows(1, 4, 0))], title="")
    for count in (0, 5):
        with pytest.raises(SettingsError, match=f"{count} runs make no replay. Choose 1 to 4."):
            replay.html([recorded()] * count, title="")


@pytest.mark.parametrize("text", HOSTILE)
def test_what_people_wrote_stays_text(text):
    run = recorded(labels=[(1, text)], name=text, note=text)
    plain = Elements(replay.html([recorded()], title="plain"))
    page = replay.html([run], title=text, date=text, receipt=text)
    found = Elements(page).found
    assert [(tag, given) for tag, given, _ in found] == [(tag, given) for tag, given, _ in plain.found]
    assert text in [words for tag, _, words in found if tag == "title"]
    told, [(header, _)] = told_in(page)
    assert {told["title"], told["date"], told["receipt"], told["runs"][0]["name"], told["runs"][0]["note"]} == {text}
    assert header["marks"] == [[1, text]]


def test_the_page_allows_its_own_two_scripts_and_no_address():
    found = Elements(replay.html([recorded()], title="")).found
    [policy] = [given["content"] for tag, given, _ in found if given.get("http-equiv") == "Content-Security-Policy"]
    scripts = [text for tag, given, text in found if tag == "script" and "type" not in given]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(scripts) == 2
    assert re.findall(r"'sha256-(.*?)'", policy) == hashes
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy
    linked = [given.get(name) for _, given, _ in found for name in ("src", "href") if name in given]
    assert linked == ["data:,"]
    assert "@import" not in replay._shell()[0].decode()
    assert "url(" not in replay._shell()[0].decode()


def test_the_player_is_made_of_the_modules_of_the_playground():
    charts = {
        "load_chart.js",
        "history_chart.js",
        "bias_chart.js",
        "max_vio_chart.js",
        "loss_chart.js",
        "dropped_chart.js",
    }
    shared = charts | {"page.js", "strip.js", "marks.js", "step_chart.js", "wire.js"}
    assert shared <= set(assets.modules("replay.js")) & set(assets.modules("main.js"))
    assert not {"replay.js", "player.js"} & set(assets.modules("main.js")), "the live page does not load it"
    script = bundle.script("replay.js")
    for name in assets.modules("replay.js"):
        assert script.count(f'modules["{name}"] = ') == 1
    assert not re.search(r"^\s*(import|export)\b", script, re.MULTILINE)


def test_modules_come_after_those_they_import(monkeypatch):
    order = assets.modules("main.js")
    for name in order:
        for imported in re.findall(r'from "\./([\w.]+)"', assets.text(name)):
            assert order.index(imported) < order.index(name)
    monkeypatch.setattr(
        assets, "_CONTENT", {"a.js": b'import { b } from "./b.js"', "b.js": b'import { a } from "./a.js"'}
    )
    with pytest.raises(ValueError, match=r"in a circle: a\.js -> b\.js -> a\.js"):
        assets.modules("a.js")


@pytest.mark.parametrize("line", ['import x from "./x.js"', "export default 3", "export let n = 1", "export { n }"])
def test_a_module_that_is_not_understood_is_refused(line):
    with pytest.raises(ValueError, match=r"odd\.js cannot go into a replay, because of: (import|export)"):
        bundle._function("odd.js", f"// a comment\n{line}\n")


def test_names_are_taken_and_given_as_modules_do():
    taken = 'import {\n  a,\n  b as c,\n} from "./giver.js";\n'
    taker = taken + "export async function d() {}\nexport class E {}\nexport const f = a + c"
    made = bundle._function("taker.js", taker)
    assert 'const {\n  a,\n  b: c,\n} = modules["giver.js"];' in made
    assert "return { d, E, f }" in made


def test_a_script_cannot_end_its_element():
    assert "</script" not in bundle.inline("a = '</script>'")
    assert "<!--" not in bundle.inline("a = '<!-- <script>'")


def test_it_needs_neither_torch_nor_streamlit_nor_plotly():
    script = "import sys, moeviz.live.replay; print(sorted({'torch', 'streamlit', 'plotly'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_files_name_says_preset_seed_and_step():
    assert replay.file_name(Recipe(seed=4), Knobs(), 12, "csv") == "moeviz-no_balancing-seed4-step12.csv"
    assert replay.file_name(Recipe(), Knobs(u=0.5), 3, "html") == "moeviz-settings-seed0-step3.html"
    assert replay.title(Recipe(seed=2), Knobs(u=0.5)) == "Own settings: 16 experts, task skills, seed 2"
