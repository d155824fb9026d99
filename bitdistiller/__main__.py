"""``python -m bitdistiller`` is the command ``bitdistiller``: what launchers of several processes can start."""

from bitdistiller.launch import main

if __name__ == "__main__":  # whoever imports all modules is not to run it
    main()
