"""Which plans can be built at all."""

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
