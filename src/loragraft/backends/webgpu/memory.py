"""How much memory a GPU has, which WebGPU does not say: asked of Vulkan's loader, where it is Vulkan that runs it."""

from __future__ import annotations

import ctypes
from functools import cache

from loragraft.backends.webgpu.device import AdapterFacts, Device, adapters

_PROPERTIES_BYTES = 824
"""Of VkPhysicalDeviceProperties on 64-bit systems."""
_VENDOR, _DEVICE = 2, 3
"""The words of it that hold vendorID and deviceID."""
_DEVICE_LOCAL = 1


class _InstanceInfo(ctypes.Structure):
    """VkInstanceCreateInfo"""

    _fields_ = [
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("layer_count", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("extension_count", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    ]


class _Type(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint32), ("heap", ctypes.c_uint32)]


class _Heap(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint64), ("flags", ctypes.c_uint32)]


class _Memory(ctypes.Structure):
    """VkPhysicalDeviceMemoryProperties"""

    _fields_ = [
        ("type_count", ctypes.c_uint32),
        ("types", _Type * 32),
        ("heap_count", ctypes.c_uint32),
        ("heaps", _Heap * 16),
    ]


def memory_bytes(device: Device | AdapterFacts) -> int | None:
    """Bytes of the GPU's own memory; None where nothing says it."""
    facts = device if isinstance(device, AdapterFacts) else adapters()[device.number]
    if facts.api != "Vulkan":
        return None
    return _heaps().get((facts.vendor_id, facts.device_id))


@cache
def _heaps() -> dict[tuple[int, int], int]:
    """By vendor and device, the bytes of the largest heap on it."""
    try:
        vulkan = ctypes.CDLL("libvulkan.so.1")
    except OSError:
        return {}
    instance, count = ctypes.c_void_p(), ctypes.c_uint32()
    if vulkan.vkCreateInstance(ctypes.byref(_InstanceInfo(type=1)), None, ctypes.byref(instance)):
        return {}
    try:
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
        devices = (ctypes.c_void_p * count.value)()
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
        found = {}
        for device in devices[: count.value]:
            words, memory = (ctypes.c_uint32 * (_PROPERTIES_BYTES // 4 + 64))(), _Memory()
            vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(device), words)
            vulkan.vkGetPhysicalDeviceMemoryProperties(ctypes.c_void_p(device), ctypes.byref(memory))
            local = [heap.size for heap in memory.heaps[: memory.heap_count] if heap.flags & _DEVICE_LOCAL]
            found[words[_VENDOR], words[_DEVICE]] = max(local, default=0)
        return found
    finally:
        vulkan.vkDestroyInstance(instance, None)
