"""`sq-eval FOLDER --tasks ...`: lm-eval's command line on a packed checkpoint, which it cannot load by itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sq.cli.status import Mistake, ended, refuse_no_model

USAGE = "sq-eval FOLDER --tasks TASK,... [OPTION OF lm_eval run ...]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand a command line on to lm-eval, with this package imported; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="sq-eval",
        usage=USAGE,
        allow_abbrev=False,
        description="lm-eval on a packed checkpoint: `lm_eval run --model hf --model_args pretrained=FOLDER ...` in a "
        "process that has imported sq.",
        epilog="All other options go to lm-eval as they are: --batch_size, --limit, --num_fewshot, --output_path, "
        "--apply_chat_template, ... (`lm_eval run --help` lists them). The tasks next_line and docstring come with "
        "this package and need no download.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="a packed folder, or its name on the hub; it comes first")
    parser.add_argument("-t", "--tasks", nargs="+", default=[], help="`lm_eval ls tasks` lists them")
    parser.add_argument("-a", "--model_args", nargs="+", default=[], help="such as dtype=bfloat16")
    parser.add_argument("--include_path", help="a folder of task files, as lm-eval takes it")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0].startswith("-") and not {"-h", "--help"} & set(words):
        print(f"sq-eval: the folder comes first: {USAGE}", file=sys.stderr)
        return 2
    given, others = parser.parse_known_args(words)
    return ended("sq-eval", lambda: _evaluate(given, others))


def lm_eval_words(given: argparse.Namespace, others: Sequence[str]) -> list[str]:
    """lm-eval's command line for ours.

    Raises:
        Mistake: no such folder, no task, or an option that only lm-eval's own command line can have.
    """
    refuse_no_model(given.folder)
    if "," in given.folder or "=" in given.folder:
        raise Mistake(f"lm-eval reads {given.folder!r} as several arguments; rename the folder without , and =")
    if not given.tasks:
        raise Mistake("--tasks names none; give one or more, such as --tasks next_line,arc_easy")
    for option in ("--model", "-M"):
        if any(word == option or word.startswith(f"{option}=") for word in others):
            raise Mistake(f"{option} is set by sq-eval (--model hf); use lm_eval itself for another kind of model")
    tasks = [task for words in given.tasks for task in words.split(",") if task]
    arguments = ",".join([f"pretrained={given.folder}", *given.model_args])
    place = given.include_path or _embedded_tasks(tasks)
    included = [] if place is None else ["--include_path", place]
    return ["--model", "hf", "--model_args", arguments, "--tasks", ",".join(tasks), *included, *others]


def _embedded_tasks(tasks: Sequence[str]) -> str | None:
    """The folder of this package's own tasks, where one of them is wanted."""
    from sq.config.compose import compose
    from sq.embedded.tasks import TASKS, embedded_tasks

    return str(embedded_tasks(compose([]).paths.cache)) if set(tasks) & set(TASKS) else None


def _evaluate(given: argparse.Namespace, others: Sequence[str]) -> None:
    words = lm_eval_words(given, others)
    from lm_eval.__main__ import cli_evaluate

    import sq  # noqa: F401  (registers the quantizer)

    own = sys.argv
    sys.argv = ["lm_eval", *words]  # it takes its words from there alone
    try:
        cli_evaluate()
    finally:
        sys.argv = own


if __name__ == "__main__":
    sys.exit(main())
