"""Ablations: arms x grid x seeds under one budget. An ablation is a recipe with `[ablation]`; planning one needs no torch.

settings.py   what `[ablation]` may say
expand.py     the recipe's arms, each a whole recipe, checked before anything runs
budget.py     how long each arm trains: equal images, equal FLOPs or equal time
plan.py       the runs, their ids, their folders, their cost
runner.py     the runs as processes, several at once
results.py    what the run folders say, one row a run
statistics.py what seeds can tell
report.py     the page: table.py, conclusion.py, cautions.py, curves.py and logs.py are its parts
publish.py    a folder for a repository, with readme.py; published.py compares a rerun with it
"""
