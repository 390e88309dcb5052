"""The rooms that inference.py, benchmark.py and accuracy.py share.

Everything here is ordinary CUDA code. On an Ascend host npu_patch, which the scripts import
first, makes that an NPU; on a GPU host it is a GPU; elsewhere the CPU does the work.
"""
