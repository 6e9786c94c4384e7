"""Which plans can be built at all."""

from collections.abc import Sequence
from dataclasses import replace

from sterna.base.errors import ScheduleError
from sterna.schedule.choose import Plan, schedule
from sterna.tune.session import Progress


def fits(kernel: Progress, plan: Plan) -> bool:
    """Whether the plan's rule can write a schedule for the kernel."""
    try:
        schedule(kernel.group, plan)
    except ScheduleError:
        return False
    return True


def unfit(kernels: Sequence[Progress]) -> tuple[Progress, Plan]:
    """A product, and a plan that its rule refuses: blocks of rows that leave the weight's tiles."""
    kernel = next(k for k in kernels if k.shipped.rule == "matvec")
    plan = Plan("matvec", replace(kernel.shipped.knobs, rows=48, least_rows=48))
    assert not fits(kernel, plan)
    return kernel, plan
