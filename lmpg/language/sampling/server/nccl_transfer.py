"""The policy's weights from its GPU to servers' GPUs, broadcast by NCCL.

vLLM's protocol for trainers that do not import it: the trainer makes a group's unique id and posts
it; both sides join at once, sum one number to see that they have, and then every tensor is
broadcast in the order in which /update_weights names them.
"""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.cuda import nccl

from lmpg.language.models.policy import CausalLMPolicy
from lmpg.language.sampling.server.connection import Server
from lmpg.language.sampling.server.transfer import plain_model, sent_state


class NcclTransfer:
    """Rank 0 broadcasts to each server in a group of its own. They need VLLM_SERVER_DEV_MODE=1 and
    --weight-transfer-config '{"backend": "nccl"}'."""

    said = "by NCCL"
    model: str | None = None
    folder = None
    version = 0

    def __init__(self) -> None:
        self._groups: dict[str, Any] = {}
        self._state: dict[str, Tensor] = {}

    def write(self, policy: CausalLMPolicy) -> None:
        """Take the weights of this moment: the policy's own tensors, where these are whole and of
        the right precision already."""
        with plain_model(policy) as model:
            self._state = sent_state(policy, model)

    def send(self, server: Server) -> None:
        """Broadcast them, between a pause and the end of all that the server knows of prompts."""
        server.post("/pause?mode=wait")
        try:
            group = self._group(server)
            server.post("/start_weight_update")
            with ThreadPoolExecutor(1) as beside:  # it answers once all has arrived
                info = {"update_info": self._info()}
                arrived = beside.submit(server.post, "/update_weights", info)
                for x in self._state.values():
                    nccl.broadcast([x.cuda().contiguous()], root=0, comms=[group])
                torch.cuda.synchronize()
                arrived.result()
            server.post("/finish_weight_update")
            server.post("/reset_prefix_cache")
        except BaseException:
            self._groups.pop(server.url, None)
            raise
        finally:
            server.post("/resume")

    @property
    def can_send(self) -> bool:
        """Whether this process has the weights: rank 0 alone does."""
        return bool(self._state)

    def is_there(self, server: Server) -> bool:
        """Whether the server is known to have them: who asks does not know it."""
        return False

    def forget(self, server: Server) -> None:
        """The server has been started anew and is in no group any more."""
        self._groups.pop(server.url, None)

    def _group(self, server: Server) -> Any:
        """The group of this process and the server's workers, opened when it is first asked for."""
        if server.url not in self._groups:
            count = 1 + server.ask("/get_world_size")["world_size"]
            unique_id = nccl.unique_id()
            info = {
                "nccl_unique_id_b64": base64.b64encode(unique_id).decode(),
                "rank_offset": 1,
                "world_size": count,
                "packed": False,
            }
            with ThreadPoolExecutor(1) as beside:
                joined = beside.submit(
                    server.post, "/init_weight_transfer_engine", {"init_info": info}
                )
                group = nccl.init_rank(count, unique_id, 0)
                nccl.all_reduce([torch.zeros(1, device="cuda")], comms=[group])
                torch.cuda.synchronize()
                joined.result()
            self._groups[server.url] = group
        return self._groups[server.url]

    def _info(self) -> dict[str, list[Any]]:
        """What is about to come, in its order."""
        tensors = self._state.values()
        return {
            "names": list(self._state),
            "dtype_names": [str(x.dtype).removeprefix("torch.") for x in tensors],
            "shapes": [list(x.shape) for x in tensors],
        }
