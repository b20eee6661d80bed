"""The rows of the suite, in the order in which they run."""

from conformance.row import Group, Row
from conformance.rows import cancel, clients, endings, failover, fidelity, framing, headers, models, paths

GROUPS: tuple[Group, ...] = (
    fidelity.GROUP,
    headers.GROUP,
    paths.GROUP,
    framing.GROUP,
    endings.GROUP,
    failover.GROUP,
    cancel.GROUP,
    clients.GROUP,
    models.GROUP,
)
ROWS: tuple[Row, ...] = tuple(row for group in GROUPS for row in group.rows)
