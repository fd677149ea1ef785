"""Evaluation of Kosmos models: tasks, few-shot prompting, metrics equal to the official ones, result rows.

The doors: ``kosmos_eval.evaluate.evaluate`` (a model in memory), ``evaluate_checkpoint`` beside it (a folder),
``kosmos_eval.score.score_files`` (prediction files), ``kosmos_eval.tasks.load`` (a task).
"""
