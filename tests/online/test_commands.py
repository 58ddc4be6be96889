"""The commands end to end: flags, files, exit codes and sentences."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ranker.data import click_logs
from ranker.errors import DataError
from ranker.online import interleaving as il
from ranker.online import simulate
from ranker.online.__main__ import main


def _pages(noise, seed=0):
    """Forty queries whose results a system orders by grade and noise."""
    generator = np.random.default_rng(7)
    grades = generator.integers(0, 4, (40, 6))
    order = np.argsort(
        -grades - noise * np.random.default_rng(seed).random(grades.shape), axis=1
    )
    return [
        simulate.Page(
            f"query {q}", [f"d{q}-{d}" for d in order[q]], grades[q, order[q]].tolist()
        )
        for q in range(40)
    ]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.tsv"
    rows = list(
        simulate.make_rows(
            simulate.split_users({"A": _pages(12.0), "B": _pages(1.0)}),
            40,
            simulate.Traffic(users=500, days=6, pages=4.0, seed=1),
            simulate.Behaviour(),
        )
    )
    for row in rows:
        row["device"] = "phone" if str(row["user"])[-1] in "135" else "desk"
        row["latency"] = 40 + len(str(row["page"]))
    simulate.write_rows(path, rows)
    return path


def _run(*arguments, code=0):
    if code:
        with pytest.raises(SystemExit) as stop:
            main([str(one) for one in arguments])
        return stop.value
    return main([str(one) for one in arguments])


def test_ab(log, tmp_path, capsys):
    out, page, table = (tmp_path / name for name in ("o.json", "o.html", "o.md"))
    flags = ("--json", out, "--html", page, "--markdown", table, "--segment", "device")
    _run("ab", "--log", log, "--sequential", "--trigger", "results", *flags)
    found = json.loads(out.read_text())
    one = found["comparisons"]["B"]["PageCTR"]
    assert one["lift_interval"][0] > 0 and one["p_value"] < 0.01
    assert one["p_holm"] == one["p_value"]  # the primary is not corrected
    by_hand = _by_hand(log)
    for arm, key in (("A", "control"), ("B", "treatment")):
        assert one[key] == pytest.approx(by_hand[arm][0] / by_hand[arm][1])
        clicks = found["comparisons"]["B"]["clicks_per_page"][key]
        assert clicks == pytest.approx(by_hand[arm][2] / by_hand[arm][1])
    last = found["days"]["B"][-1]
    assert last["p_value"] == pytest.approx(one["p_value"])
    assert last["always_valid_p"] == found["sequential"]["B"]["p_value"]
    assert {row["value"] for row in found["segments"]} == {"phone", "desk"}
    assert found["triggered"]["share_of_pages"] > 0.5
    assert found["srm"]["ok"] and not found["contradictions"]
    assert any("no pre-period" in note for note in found["notes"])
    assert "PageCTR (primary)" in capsys.readouterr().out
    assert "<svg" in page.read_text() and "<script" not in page.read_text()
    assert "| measure |" in table.read_text()


def _by_hand(log):
    """Clicked pages, pages and clicks of each arm, by plain Python."""
    names, *rows = (line.split("\t") for line in log.read_text().splitlines())
    pages, clicked, clicks = {}, {}, {}
    for row in rows:
        one = dict(zip(names, row, strict=True))
        where = clicked if one["event"] == "click" else pages
        where.setdefault(one["arm"], set()).add(one["page"])
        clicks[one["arm"]] = clicks.get(one["arm"], 0) + (one["event"] == "click")
    return {arm: (len(clicked[arm]), len(pages[arm]), clicks[arm]) for arm in pages}


def test_ab_with_a_pre_period(log, tmp_path):
    out = tmp_path / "o.json"
    _run("ab", "--log", log, "--before", "2026-01-03", "--json", out)
    one = json.loads(out.read_text())["comparisons"]["B"]["PageCTR"]
    assert one["theta"] != 0 and one["plain"]["theta"] == 0
    _run("ab", "--log", log, "--before", "2020-01-01", "--json", out)
    notes = json.loads(out.read_text())["notes"]
    assert any("--before is given and no event is earlier" in note for note in notes)


def test_a_mismatch_of_the_split_stops_the_report(log, tmp_path, capsys):
    lines = log.read_text().splitlines()
    arm, user = (lines[0].split("\t").index(name) for name in ("arm", "user"))
    cut = [
        line
        for line in lines
        if not (line.split("\t")[arm] == "B" and line.split("\t")[user][-1] in "02468")
    ]
    path, out = tmp_path / "cut.tsv", tmp_path / "o.json"
    path.write_text("\n".join(cut) + "\n")
    stop = _run("ab", "--log", path, "--json", out, code=2)
    assert stop.code == 2
    assert "sample-ratio mismatch" in capsys.readouterr().err
    found = json.loads(out.read_text())
    assert not found["srm"]["ok"] and "comparisons" not in found
    _run("ab", "--log", path, "--json", out, "--srm", "report")
    assert "comparisons" in json.loads(out.read_text())
    _run("ab", "--log", path, "--json", out, "--shares", "A=2", "B=1")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--primary", "CTR"), "no such measure"),
        (("--control", "C"), "the log has the arms A, B"),
        (("--shares", "C=1"), "names the arm 'C'"),
        (("--shares", "A"), "expected NAME=VALUE"),
        (("--shares", "A=x"), "expected a number"),
        (("--before", "2030-01-01"), "no page with an arm at or after"),
        (("--trigger", "column"), "needs a column 'triggered'"),
        (("--satisfied", "900"), "no click could be satisfied"),
        (("--segment", "country"), "has no column 'country'"),
        (("--level", "0.2"), "--level 0.2"),
    ],
)
def test_settings_that_cannot_work_say_what_to_do(log, flags, said):
    assert said in str(_run("ab", "--log", log, *flags, code=1))


def test_one_arm_alone_is_no_comparison(log, tmp_path):
    lines = log.read_text().splitlines()
    arm = lines[0].split("\t").index("arm")
    path = tmp_path / "one.tsv"
    kept = [line for line in lines[1:] if line.split("\t")[arm] == "A"]
    path.write_text("\n".join([lines[0], *kept]) + "\n")
    assert "the arm 'A' alone" in str(_run("ab", "--log", path, code=1))
    path.write_text(
        "\n".join(line.replace("\tA\t", "\t\t") for line in [lines[0], *kept])
    )
    assert "'arm' is missing or empty" in str(_run("ab", "--log", path, code=1))


def test_neither_buckets_nor_threads_change_anything(log, tmp_path, monkeypatch):
    from ranker.online import events

    header = log.read_text().split("\n", 1)[0].split("\t")
    odd = [
        {
            "time": f"2026-01-04T1{'AB'.find(arm) + 1}:00:00Z",
            "user": f"odd{n}",
            "page": f"odd{n}-{arm}",
        }
        | {"event": event, "arm": arm, "query": "q", "device": "desk"}
        for n in range(20)
        for event, arm in (("page", "A"), ("page", "B"), ("click", ""))
    ]
    lines = ["\t".join(row.get(name, "") for name in header) for row in odd]
    path = tmp_path / "odd.tsv"
    path.write_text(log.read_text() + "\n".join(lines) + "\n")
    found = []
    for rows, threads in ((10**9, 1), (900, 1), (900, 2), (900, 4)):
        monkeypatch.setattr(events, "ROWS_A_BUCKET", rows)
        out = tmp_path / f"{rows}-{threads}.json"
        flags = ("--threads", threads, "--segment", "device", "--before", "2026-01-03")
        _run("ab", "--log", path, "--json", out, *flags)
        found.append(json.loads(out.read_text()))
    one, *others = found
    counts = {kind: told["count"] for kind, told in one["contradictions"].items()}
    assert counts == {"user_in_two_arms": 20, "click_without_page": 20}
    for other in others:
        assert one["arms"] == other["arms"]
        assert other["contradictions"] == others[0]["contradictions"]
        told = other["contradictions"].items()
        assert counts == {kind: values["count"] for kind, values in told}
        for effect, same in (
            *_alike(one["comparisons"]["B"], other["comparisons"]["B"]),
            *zip(one["days"]["B"], other["days"]["B"], strict=True),
            *zip(one["segments"], other["segments"], strict=True),
        ):
            assert same["lift"] == pytest.approx(effect["lift"])
            assert same["lift_interval"] == pytest.approx(effect["lift_interval"])
            assert same["p_value"] == pytest.approx(effect["p_value"])


def _alike(one, other):
    assert one.keys() == other.keys()
    return [(one[name], other[name]) for name in one]


def test_aa_and_power(log, tmp_path):
    out, page = tmp_path / "o.json", tmp_path / "o.html"
    _run("aa", "--log", log, "--splits", 400, "--json", out, "--html", page)
    one = json.loads(out.read_text())["measures"]["PageCTR"]
    assert 0.02 < one["false_positives"] < 0.09 and sum(one["histogram"]) == 400
    flags = ("--lift", 0.01, 0.2, "--users", 1000, "--before", "2026-01-03")
    _run("power", "--log", log, *flags, "--json", out, "--html", page)
    rows = json.loads(out.read_text())["rows"]
    assert rows[0]["plain"]["users"] > 100 * rows[1]["plain"]["users"]
    assert rows[0]["plain"]["days"] > rows[1]["plain"]["days"]
    assert "cuped" in rows[0] and rows[1]["plain"]["power"] > 0.9


def _interleaved(path, systems, users=250, seed=0, method=il.team_draft):
    """A log of pages that two systems share; the behaviour prefers good results."""
    generator = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for number in range(1 + int(generator.poisson(3))):
            at = int(generator.integers(0, 40))
            grade = {
                d: g
                for one in systems
                for d, g in zip(one[at].documents, one[at].grades, strict=True)
            }
            key = il.make_key(str(at), f"u{user}", str(number))
            mixed = method(*(one[at].documents for one in systems), key, length=6)
            page = simulate.Page(
                f"query {at}", mixed.documents, [grade[d] for d in mixed.documents]
            )
            rows += simulate.page_rows(
                page,
                {"user": f"u{user}", "page": f"u{user}-{number}", "query": page.query},
                1e9 + 10_000 * number,
                simulate.Behaviour(model="cascade"),
                generator,
                more=[
                    {"team": t, "score": c}
                    for t, c in zip(mixed.teams, mixed.credits, strict=True)
                ],
            )
    simulate.write_rows(path, rows)
    return path


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        (il.team_draft, ()),
        (il.team_draft, ("--credit", "dwell")),
        (il.team_draft, ("--credit", "satisfied", "--names", "a=old", "b=new")),
        (il.optimised, ("--by", "score")),
        (il.probabilistic, ("--by", "score")),
    ],
)
def test_interleave_finds_the_better_system(tmp_path, method, flags):
    path, out = tmp_path / "i.jsonl", tmp_path / "o.json"
    _interleaved(path, (_pages(12.0), _pages(1.0)), method=method)
    html = tmp_path / "o.html"
    _run("interleave", "--log", path, "--json", out, "--html", html, *flags)
    found = json.loads(out.read_text())
    assert found["interval"][1] < 0 and found["p_value"] < 0.05
    assert found["preferred"] == ("new" if "--names" in flags else "b")
    assert found["wins"] + found["losses"] + found["ties"] == found["clicked_pages"]


def test_interleave_of_three_systems_is_corrected(tmp_path):
    path, out = tmp_path / "m.jsonl", tmp_path / "o.json"
    rows = []
    for user in range(40):
        base = {"user": f"u{user}", "page": f"p{user}", "query": "q"}
        for at, team in enumerate(("x", "y", "z"), 1):
            shown = {"document_id": f"d{at}", "position": at, "team": team}
            rows.append({**base, "time": 1e9, "event": "page", **shown})
        rows.append({**base, "time": 1e9 + 9, "event": "click", "document_id": "d1"})
    simulate.write_rows(path, rows)
    _run("interleave", "--log", path, "--json", out)
    pairs = json.loads(out.read_text())["pairs"]
    assert [(one["a"], one["b"]) for one in pairs] == [
        ("x", "y"),
        ("x", "z"),
        ("y", "z"),
    ]
    assert [one["wins"] for one in pairs] == [40, 40, 0]
    assert pairs[2]["p_holm"] == 1.0 and pairs[0]["preferred"] == "x"


def test_gsb(tmp_path):
    for name, scores in (("old", (3, 2, 1)), ("new", (1, 2, 3))):
        lines = [
            f"q{q} Q0 d{d} 1 {scores[d] if q else d} t"
            for q in range(9)
            for d in range(3)
        ]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    sheet, key, out = (tmp_path / name for name in ("s.tsv", "k.json", "o.json"))
    runs = [f"{name}={tmp_path / name}" for name in ("old", "new")]
    _run("gsb", "--run", *runs, "--sheet", sheet, "--key", key)
    header, *rows = (line.split("\t") for line in sheet.read_text().splitlines())
    assert "old" not in sheet.read_text() and len(rows) == 8
    left = json.loads(key.read_text())["left"]
    assert set(left.values()) == {"old", "new"}  # sides are drawn
    for row in rows:  # a judge who likes the new one, but for one query
        likes = "old" if row[0] == "q3" else "new"
        row[header.index("verdict")] = "left" if left[row[0]] == likes else "right"
    sheet.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n")
    _run("gsb", "--judged", "--sheet", sheet, "--key", key, "--json", out)
    found = json.loads(out.read_text())
    assert (found["good"], found["bad"], found["unchanged"]) == (7, 1, 1)
    assert found["gsb"] == pytest.approx(6 / 8)
    assert found["sign_p_value"] == pytest.approx(2 * 9 / 2**8)
    sheet.write_text(sheet.read_text().replace("\tleft\n", "\tbetter\n", 1))
    stop = _run("gsb", "--judged", "--sheet", sheet, "--key", key, code=1)
    assert "field 'verdict': found 'better'" in str(stop)


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    """The log of an exploring logger, what is true of it, and two runs."""
    folder = tmp_path_factory.mktemp("explored")
    for name, scores in (("first", (3, 2, 1)), ("last", (1, 2, 3))):
        lines = [f"q{q} Q0 d{d} 1 {scores[d]} t" for q in range(4) for d in range(3)]
        (folder / name).write_text("\n".join(lines) + "\n")
    grades = [f"q{q} 0 d{d} {2 - d + q % 2}" for q in range(4) for d in range(3)]
    (folder / "qrels").write_text("\n".join(grades) + "\n")
    runs = [f"{name}={folder / name}" for name in ("first", "last")]
    log, out = folder / "e.tsv", folder / "truth.json"
    flags = ("--design", "explore", "--qrels", folder / "qrels", "--depth", 3)
    more = ("--users", 900, "--explore", 0.6, "--json", out)
    _run("simulate", "--log", log, "--run", *runs, *flags, *more)
    return log, json.loads(out.read_text()), runs


@pytest.fixture(scope="module")
def modelled(explored, tmp_path_factory):
    """What `clickmodel` reports of that log, and files of what it finds."""
    folder = tmp_path_factory.mktemp("modelled")
    out, looks = folder / "o.json", folder / "looks.json"
    page, attraction = folder / "o.html", folder / "a.tsv"
    flags = ("--model", "all", "--depth", 3, "--html", page, "--attraction", attraction)
    _run("clickmodel", "--log", explored[0], "--json", out, "--out", looks, *flags)
    return json.loads(out.read_text())["models"], looks, attraction


def test_clickmodel_finds_how_users_look(explored, modelled):
    _, truth, _ = explored
    found, _, attraction = modelled
    close = found["pbm"]["propensities"], truth["examination"]
    np.testing.assert_allclose(*close, atol=0.06)
    assert found["pbm"]["perplexity"] < found["cascade"]["conditional_perplexity"]
    assert len(attraction.read_text().splitlines()) == 13


def test_counterfactual_values_another_ranking(explored, modelled, tmp_path):
    log, truth, runs = explored
    out = tmp_path / "o.json"
    flags = ("--run", *runs, "--depth", 3, "--json", out)
    _run("counterfactual", "--log", log, *flags, "--html", tmp_path / "o.html")
    for name, one in json.loads(out.read_text())["systems"].items():
        for kind in ("ips", "snips", "dr"):
            low, high = one[kind]["interval"]
            slack = (high - low) / 2
            clicks = truth["systems"][name]["clicks_per_page"]
            assert low - slack < clicks < high + slack
    _run("counterfactual", "--log", log, *flags, "--propensities", modelled[1])
    systems = json.loads(out.read_text())["systems"]
    assert systems["first"]["ips"]["value"] > systems["last"]["ips"]["value"]


def test_impressions_are_lists_with_labels(explored, modelled, tmp_path):
    lists, out = tmp_path / "lists.jsonl", tmp_path / "o.json"
    flags = ("--propensities", modelled[1], "--depth", 3, "--json", out)
    _run("impressions", "--log", explored[0], "--out", lists, *flags)
    rows = [json.loads(line) for line in lists.read_text().splitlines()]
    assert len(rows) == json.loads(out.read_text())["lists"] == 4
    assert all(len(row["document_ids"]) == len(row["labels"]) == 3 for row in rows)


def test_clicks_are_those_of_the_log(explored, tmp_path):
    log, clicks, out = explored[0], tmp_path / "clicks.parquet", tmp_path / "o.json"
    pages = ("--html", tmp_path / "o.html")
    _run("clicks", "--log", log, "--out", clicks, "--json", out, *pages)
    found = json.loads(out.read_text())
    assert found["written"] == found["clicks"] == found["log"]["clicks"] > 0
    logged = [line.split("\t") for line in log.read_text().splitlines()]
    where = {name: at for at, name in enumerate(logged[0])}
    of_page = {row[where["page"]]: row[where["query"]] for row in logged[1:]}
    expected = sorted(
        (of_page[row[where["page"]]], row[where["document_id"]])
        for row in logged[1:]
        if row[where["event"]] == "click"
    )
    read = click_logs.read_clicks(click_logs.open_log(clicks))
    assert sorted((one.query, one.document_id) for one in read) == expected
    with pytest.raises(DataError, match="is an event log"):
        list(click_logs.read_clicks(click_logs.open_log(log)))
    stop = _run("clicks", "--log", log, "--out", tmp_path / "c.tsv", code=1)
    assert "expected a name in .parquet" in str(stop)


def test_counterfactual_says_what_it_cannot_use(explored, tmp_path):
    log, _, runs = explored
    out = tmp_path / "o.json"
    _run("counterfactual", "--log", log, "--run", *runs, "--depth", 3, "--json", out)
    flags = ("--run", *runs, "--depth", 3)
    stop = _run("counterfactual", "--log", log, *flags, "--propensities", out, code=1)
    assert "holds no looking chances" in str(stop)
    other = tmp_path / "other"
    other.write_text("x9 Q0 d0 1 1.0 t\n")
    stop = _run("counterfactual", "--log", log, "--run", f"o={other}", code=1)
    assert "no page has a query of the run" in str(stop)


def test_counterfactual_refuses_what_was_hardly_shown(tmp_path):
    log, run = tmp_path / "l.tsv", tmp_path / "run"
    run.write_text("q Q0 d1 1 1.0 t\n")
    rows = [
        {
            "time": 1e9 + n,
            "user": f"u{n}",
            "page": f"p{n}",
            "event": "page",
            "query": "q",
            "document_id": "d1" if n < 20 else "d2",
            "position": 1,
            "propensity": 0.02 if n < 20 else 0.98,
        }
        for n in range(1000)
    ]
    simulate.write_rows(log, rows)
    stop = _run("counterfactual", "--log", log, "--run", f"r={run}", code=1)
    assert "effective sample of 'r' is 20.0" in str(stop)
    for row in rows[:20]:
        row["propensity"] = 1e-6
    simulate.write_rows(log, rows)
    stop = _run("counterfactual", "--log", log, "--run", f"r={run}", code=1)
    assert "below 0.0001" in str(stop)
    for row in rows:
        row["propensity"] = None
    simulate.write_rows(log, rows)
    stop = _run("counterfactual", "--log", log, "--run", f"r={run}", code=1)
    assert "1,000 shown results have no propensity" in str(stop)


def test_simulated_truth(tmp_path):
    """The written truth is what the log shows, for each model of clicks."""
    for model in ("pbm", "cascade", "dbn"):
        behaviour = simulate.Behaviour(model=model)
        pages = _pages(3.0)
        show = simulate.split_users({"A": pages})
        traffic = simulate.Traffic(users=400, pages=3.0)
        clicked, shown, clicks = set(), set(), 0
        for row in simulate.make_rows(show, 40, traffic, behaviour):
            (clicked if row["event"] == "click" else shown).add(row["page"])
            clicks += row["event"] == "click"
        asked = simulate.popularity(40)
        ctr = simulate.page_ctr(pages, behaviour, asked)
        assert len(clicked) / len(shown) == pytest.approx(ctr, abs=0.05)
        mean = simulate.clicks_a_page(pages, behaviour, asked)
        assert clicks / len(shown) == pytest.approx(mean, abs=0.12)


def test_it_starts_without_jax():
    code = (
        "import sys\nsys.argv = ['x', 'ab', '--help']\n"
        "from ranker.online.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'jax', 'flax', 'torch', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--sequential" in done.stdout
