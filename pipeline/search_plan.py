"""The plan of a search as text: the space, how it is searched, what a trial costs, what is tried. No torch here."""

from __future__ import annotations

import itertools
import math

from pipeline import search_words
from pipeline.config import JobConfig, job_id
from pipeline.counting import is_guess, training_evals
from pipeline.search_config import Search
from pipeline.search_cost import MOST, first_trials
from pipeline.space import Domain, laid_over
from pipeline.tried import option_text, option_texts

NUM_SHOWN = 5  # jobs that it would try first
MOST_COUNTED = 100_000  # combinations


def describe_search(search: Search) -> list[str]:
    """Raises ValueError if the conditions leave nothing."""
    settings, trials = search.settings, first_trials(search, MOST)
    rows = {path: values_of(domain) for path, domain in search.space.domains.items()}
    rows |= {"where" + " " * i: str(condition) for i, condition in enumerate(search.space.conditions)}
    at_once = "as many as the machine takes" if settings.at_once is None else str(settings.at_once)
    facts = {
        "combinations": combinations(search),
        "sought": search_words.goals(search),
        "by": search_words.how(search),
        "at once": f"{at_once}; each takes {search_words.per_trial(settings.per_trial)}",
        "budget": search_words.budget(settings.budget) if settings.budget else "",
        "a trial": f"{evals_of([config for _, config in trials])} in training, if it is not stopped",
        "winners": f"{search_words.winners(search)}: trained in full and judged like any job",
    }
    width = max(map(len, rows))
    lines = [f"A search of {search.num_trials:,} trial{'' if search.num_trials == 1 else 's'} over"]
    lines += [f"  {name.strip():<{width}}  {text}" for name, text in rows.items()]
    lines += [f"{name:<12}  {text}" for name, text in facts.items() if text]
    lines += ["", "It begins at random, with:" if settings.algorithm == "tpe" else "It tries first:"]
    for values, config in trials[:NUM_SHOWN]:
        chosen = ", ".join(f"{path} = {option_text(search.space.domains[path], v)}" for path, v in values.items())
        lines.append(f"{_number(training_evals(config), is_guess(config)):>12}  {chosen}")
        lines.append(f"{'':>12}  {job_id(config)}")
    return lines


def combinations(search: Search) -> str:
    """How many there are, and how many the conditions leave; empty for a space without end."""
    if not search.space.is_finite:
        return ""
    total = math.prod(len(domain.all()) for domain in search.space.domains.values())
    if not search.space.conditions:
        return f"{total:,}"
    looked = itertools.islice(search.space.grid(), MOST_COUNTED)
    left = sum(search.space.allows(laid_over(search.base, values)) for values in looked)
    if total > MOST_COUNTED:
        return f"{total:,}, of which the conditions leave ~{round(left * total / MOST_COUNTED):,}"
    return f"{total:,}, of which the conditions leave {left:,}"


def evals_of(configs: list[JobConfig]) -> str:
    """From the cheapest trial to the dearest of those that are known."""
    found = [(evals, is_guess(config)) for config in configs if (evals := training_evals(config)) is not None]
    if not found:
        return "an unknown number of field evaluations"
    low, high = min(found), max(found)
    ends = [_number(*low)] + ([_number(*high)] if high[0] > low[0] else [])
    return f"{' to '.join(ends)} field evaluations"


def values_of(domain: Domain) -> str:
    return ", ".join(option_texts(domain).values()) if domain.is_list else str(domain)


def _number(evals: int | None, guess: bool) -> str:
    return "?" if evals is None else ("~" if guess else "") + f"{evals:,}"
