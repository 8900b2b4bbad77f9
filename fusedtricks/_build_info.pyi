version: str
torch: str
cuda: str | None
backends: list[str]
left_out: dict[str, str]
cuda_architectures: list[str]
