"""How the demo model that ships with Sterna is made: corpus, tokenizer, training, evaluation.

Run in order, from the repository's root (torch is needed by the last two only):

    python -m examples.demo_model.tokenizer
    python -m examples.demo_model.train
    python -m examples.demo_model.evaluate
"""
