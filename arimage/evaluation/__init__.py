"""What a model can do, measured on held-out cases by instruments that training never saw.

arimage evaluate configs/nano/evaluate.yaml
"""
