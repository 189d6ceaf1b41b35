"""The benchmarks that papers report: their prompt files read, pictures laid out as their scorers expect.

arimage benchmark cvtg-2k --prompts CVTG-2K/ -o runs/cvtg
"""
