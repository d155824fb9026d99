"""The commands of stages on the machines of a Ray cluster: `bitdistiller reproduce --ray ADDRESS`.

Four processes take part. `bitdistiller reproduce` forks a child a stage, as without a cluster; where DVC would start
the stage's command there, the child asks the *dispatcher* (:mod:`.dispatch`), the one process that is connected to Ray
(Ray's threads do not survive a fork, and a connection costs 100 MB). It submits a Ray task, which calls :mod:`.machine`
on whichever machine has room. That runs the command under a *guard* (:mod:`.guard`), so that nothing of it outlives the
Ray worker. If the machine dies, Ray runs the task on another; the child only ever sees one answer.

Ray is asked for what it is good at: which machine has room, and noticing that one died. What a stage needs, what is up
to date and what is recorded stays with DVC, on the machine where the pipeline was started.

Ray pickles what it sends between its processes. Here only JSON text travels, but whoever reaches the ports of a Ray
cluster can run anything on it: it belongs on trusted ground. Ray is optional (`pip install 'bitdistiller[cluster]'`)
and imported by the dispatcher alone.
"""
