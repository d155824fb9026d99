from bitdistiller.sandbox.outcome import Limits, Outcome
from bitdistiller.sandbox.run import Worker, run_many, run_program
