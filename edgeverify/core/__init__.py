"""Concepts and judgement: cases, traces, taps, results, noise, comparison; numpy only."""
