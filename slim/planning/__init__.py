"""Which channels go: rank all groups of the network by |γ| against one global threshold, within floors and a budget."""

from slim.planning.groups import Groups as Groups
from slim.planning.planner import explain as explain
from slim.planning.planner import plan as plan
from slim.planning.pruning_plan import Layer as Layer
from slim.planning.pruning_plan import PruningPlan as PruningPlan
