"""Triton kernels. A row of a result is computed alone, in an order that its own sizes fix: batches do not change it.

The modules import triton: they are imported when a device is opened.
"""
