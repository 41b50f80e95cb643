"""The workers' module for Dramatiq's own command: `dramatiq tasks.worker --queues interactive`.

It is `python -m tasks`, but that each process has its own copy of everything.
"""

from tasks.composition import set_up

set_up()
