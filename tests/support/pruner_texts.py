"""What pruners written to files of their own share, as text to end such a file with."""

from __future__ import annotations

# The faults that a pruner's process has to survive, and the least that makes weights sparse.
FAULTS_AND_CUT = '''

def fail(fault):
    """Raise an error, or end the process without a word, if `fault` says so."""
    if fault == "raises":
        raise RuntimeError("the pruner has a fault")
    if fault == "dies":
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)


def cut(state, names, keep):
    """Keep the first `keep` weights of those layers; the rest become zero in place."""
    for name in names:
        weights = state[name].view(-1)
        weights[min(keep, weights.numel()):] = 0
        keep -= min(keep, weights.numel())
    return state
'''
