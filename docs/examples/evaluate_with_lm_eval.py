"""lm-eval on a quantized model: any of its tasks by name; here two small ones that need no download.

python docs/examples/evaluate_with_lm_eval.py [MODEL] [TASK ...]
"""

import sys
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import sq
from sq.embedded.tasks import TASKS, embedded_tasks


def main(model: str = "tiny", *tasks: str) -> None:
    """A line of scores for each task."""
    quantized = sq.quantize(model, method="singlequant", bits="w4a4kv4", weights="rtn")
    harness = HFLM(pretrained=quantized.model, tokenizer=quantized.tokenizer, batch_size=8)
    known = TaskManager(include_path=str(embedded_tasks(Path("cache"))))
    found = simple_evaluate(harness, tasks=list(tasks or TASKS), task_manager=known, limit=20)
    for name, scores in found["results"].items():
        print(name, {metric: round(value, 3) for metric, value in scores.items() if isinstance(value, float)})


if __name__ == "__main__":
    main(*sys.argv[1:])
