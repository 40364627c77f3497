"""How the page was made: commands, digests, and how to make one cell of its tables again."""

from __future__ import annotations

from collections.abc import Mapping

from common.comparison import Comparison
from common.text import words

from convpeft.reporting.provenance import Provenance, provenance_markdown

_CELL = "serial, group"


def made_block(budget: str, every: Mapping[str, Comparison]) -> str:
    """The last block of the page."""
    content = [found.content for found in every.values()]
    first, found = content[0], list(every.values())[-1]
    made = Provenance(
        command=f"python experiments/arrangements/run.py run --data DIR --budget {budget} --workers 1\n"
        f"python experiments/arrangements/run.py cost --data DIR --budget {budget}  # on a quiet machine",
        page_command="python experiments/arrangements/run.py page",
        base={f"{each['model']['source']} ({each['model']['weights']})": each["base_digest"] for each in content},
        data={f"{each['title']} ({each['source']}), test split": each["test_digest"] for each in content},
        trials=first["trials"],
        ranges=first["ranges"],
        seeds=tuple(max((found.seeds for found in every.values()), key=len)),
        versions=first["versions"],
    )
    lines = [line for each in content for line in (*each["runs"], *each["tried"])]
    minutes = sum(line["seconds"] for line in lines) / 60
    return "\n\n".join(
        [
            provenance_markdown(made),
            f"{len(lines)} runs and trials took {minutes:.0f} minutes of one thread each, on a machine that was doing "
            "other work. DIR holds the public data sets and weights that the README beside the experiment lists. One "
            f"cell of a table again is its tuning, {words(first['trials'])} trials, and one run; here `{_CELL}` on "
            f"{found.content['title']}:",
            "```bash\npython experiments/arrangements/run.py cell --data DIR "
            f'--budget {budget} --task {found.name} --arm "{_CELL}" --seed 0\n```',
            "On the same machine and with the same versions it gives the same accuracy. The digests of the images that "
            "each seed drew are in the results file.",
        ]
    )
