"""Many videos: one job description, two engines, one ledger that survives every kill.

ledger.py    one SQLite file: what is to do, running, done, set aside; items with unique keys
ledger_file.py, ledger_claims.py  its tables, lock, version and damage; owners, leases, failed tries
job.py       Stage and Job: importable steps with their own workers and resources
local.py     `run_local(job, ledger, report)`: processes of this machine (local_worker.py), their GPUs (devices.py)
ray_engine.py  `run_ray(job, ledger, report)`: the same job on a Ray cluster (extra `scale`); ray_board.py
pairs.py, grounding*.py  `tubelet batch`: many (video, sentence) pairs as such a job
"""
