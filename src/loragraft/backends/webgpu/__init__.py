"""The backend that runs graphs on a GPU by WebGPU: Vulkan, Metal or DirectX 12, through `wgpu` (extra `gpu`)."""
