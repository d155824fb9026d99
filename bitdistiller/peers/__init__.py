"""Other people's quantizers (GPTQ, HQQ, AutoRound) as baselines: run from their own packages in an environment of
their own, and what comes back checked before it is scored like any other model."""

from bitdistiller.peers.run import PeerRecord, load_peer, peers_python, quantize_with_peer, read_record, require_python

__all__ = ["PeerRecord", "load_peer", "peers_python", "quantize_with_peer", "read_record", "require_python"]
