"""The inner loops of the searches: each function in array code, and beside it a CUDA kernel that takes its place on a card.

The kernels are in the `.cu` files here, one source for one module; they are launched through `Device.launch`, and the
array code is what any other library runs, and what tests hold them to.
"""
