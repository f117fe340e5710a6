"""`python -m tests.mutation run` judges mutants; `report` writes reports/verified/mutation.md."""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rdfia.data.files import cache_dir
from tests.mutation import report
from tests.mutation.mutants import PACKAGE, Mutant, module_name, mutants_of, sample
from tests.mutation.runs import AGAIN, MOST, Suite, Worker, judge_each, read_rows

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "reports" / "verified" / "mutation.jsonl"
EQUIVALENT = Path(__file__).with_name("equivalent.toml")


say = functools.partial(print, flush=True)


def all_mutants(only: Sequence[str] = ()) -> tuple[list[Mutant], dict[str, str], Counter[str]]:
    """The mutants of the package or of some rooms and modules, their sources, and use of rules."""
    found: list[Mutant] = []
    sources = {}
    left_out: Counter[str] = Counter()
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        module = module_name(path, ROOT / PACKAGE)
        if not only or any(module == name or module.startswith(f"{name}.") for name in only):
            sources[module] = path.read_text("utf-8")
            mutants, rules = mutants_of(sources[module], module)
            found += mutants
            left_out += rules
    return found, sources, left_out


def run(options: argparse.Namespace) -> None:
    """Judges mutants until the time is over, and appends a row for each to the results."""
    end = time.monotonic() + 60 * options.minutes
    mutants, sources, _ = all_mutants(options.only)
    rows = report.latest(read_rows(options.results))
    if options.survivors:
        marked = report.marks(EQUIVALENT)
        chosen = iter(
            [
                mutant
                for mutant in mutants
                if rows.get(mutant.id, {}).get("outcome", "killed") != "killed"
                and mutant.id not in marked
            ]
        )
    else:
        chosen = sample(mutants, sources, options.seed, set(rows))
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        workers = [Worker(ROOT, Path(folder, str(n))) for n in range(options.jobs)]
        try:
            suite = Suite(ROOT, cache_dir() / "mutation", options.tests)
            suite.measure(workers, say)
            in_time = (mutant for mutant in chosen if time.monotonic() < end)
            counts = judge_each(
                suite,
                workers,
                in_time,
                options.results,
                say,
                AGAIN if options.survivors else MOST,
                seed=options.seed,
                part="" if options.tests == ("tests",) else " ".join(options.tests),
            )
            print(dict(counts))
        finally:
            for worker in workers:
                worker.close()


def write_report(options: argparse.Namespace) -> None:
    """Writes the page beside the results."""
    mutants, _, left_out = all_mutants()
    text = report.page(
        read_rows(options.results),
        {mutant.id: mutant for mutant in mutants},
        left_out,
        report.marks(EQUIVALENT),
    )
    options.results.with_suffix(".md").write_text(text, "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    commands = parser.add_subparsers(required=True)
    judge = commands.add_parser("run", help=run.__doc__)
    judge.set_defaults(command=run)
    judge.add_argument(
        "--minutes", type=float, default=30, help="start no mutant later (default: 30)"
    )
    judge.add_argument("--seed", type=int, default=0, help="seed of the sample (default: 0)")
    judge.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    judge.add_argument(
        "--only", nargs="+", default=(), help="rooms or modules, such as transfer.svm"
    )
    judge.add_argument("--survivors", action="store_true", help="judge the survivors once more")
    judge.add_argument(
        "--tests", nargs="+", default=("tests",), help="folders or files of tests (default: tests)"
    )
    write = commands.add_parser("report", help=write_report.__doc__)
    write.set_defaults(command=write_report)
    for each in (judge, write):
        each.add_argument(
            "--results",
            type=Path,
            default=RESULTS,
            help=f"file of the rows (default: {RESULTS.relative_to(ROOT)})",
        )
    options = parser.parse_args(arguments)
    options.command(options)


if __name__ == "__main__":
    main()
