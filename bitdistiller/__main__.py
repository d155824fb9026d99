"""``python -m bitdistiller`` is the command ``bitdistiller``: what launchers of several processes can start."""

from bitdistiller.launch import main

main()
