version: str
torch: str
cuda: str | None
backends: list[str]
instruction_sets: list[str]
left_out: dict[str, str]
cuda_architectures: list[str]
