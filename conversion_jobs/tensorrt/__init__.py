"""Driving `trtexec`: which version it is, what it is told, what it answers. Nothing here needs TensorRT to be imported.

Sources: the help texts and sample code of TensorRT 8.6, 10.x and 11.1, and NVIDIA's notes on moving from 10.x to 11.x.
"""
