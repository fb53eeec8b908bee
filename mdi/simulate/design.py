"""From a cluster file to a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mdi.errors import UserError
from mdi.pipeline.api import StarterOptions
from mdi.pipeline.choice import best_plan
from mdi.pipeline.problem import Workload
from mdi.plan.costs import Load, Problem
from mdi.plan.plan import Plan
from mdi.plan.wishes import permitted
from mdi.simulate.problem import cluster_problem, known_workload
from mdi.simulate.profiles import read_cluster


@dataclass(frozen=True, slots=True)
class Design:
    """A cluster on paper, the model on it, and the plan."""

    title: str
    workload: Workload
    problem: Problem
    plan: Plan


def design(path: Path, options: StarterOptions, load: Load, prompt_tokens: int) -> Design:
    """Raises UserError for what the file or the options say wrong, ClusterError when the devices cannot hold the model."""
    if options.split is not None:
        raise UserError("--split is for real nodes", hint="use --pin to fix blocks with --nodes")
    cluster = read_cluster(path)
    workload = known_workload(options.model, options.quant, options.block, options.ctx, options.n_slots, options.kv_type)
    problem = permitted(cluster_problem(cluster, workload, load=load, prompt_tokens=prompt_tokens), options.wishes)
    return Design(cluster.title, workload, problem, best_plan(problem, options))
