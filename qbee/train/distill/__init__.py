"""Knowledge distillation: a small or quantized student learns from labels and a float teacher.

``fit(student, ..., objective=Distillation(student, teacher, settings, seed=seed))`` trains on
both; ``methods.names()`` lists what can be learned from the teacher.
"""
