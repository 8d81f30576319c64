-- Apply transitions, in order.
--
-- ARGV[2]: seconds that a finished record is kept, '' for ever; then for each transition, '' where there is nothing:
-- the task's id, state, at (microseconds), retries, name, queue, args, kwargs, root_id, worker, result, date_done; how
-- many rarer fields follow; and these as name and value: owner, parent_id, group_id, eta, expires, children, traceback,
-- error, replay, and stock, the SHA-1 of what a stock worker wrote, from which the transition was made.

local steps, ids, seen = {}, {}, {}
local position, length = 3, #ARGV

while position < length do
  local id, rare = ARGV[position], tonumber(ARGV[position + 12])
  local step = {
    id = id,
    state = ARGV[position + 1],
    at = ARGV[position + 2],
    retries = ARGV[position + 3],
    name = ARGV[position + 4],
    queue = ARGV[position + 5],
    args = ARGV[position + 6],
    kwargs = ARGV[position + 7],
    root_id = ARGV[position + 8],
    worker = ARGV[position + 9],
    result = ARGV[position + 10],
    date_done = ARGV[position + 11],
    rare = rare > 0,
  }
  position = position + 13
  for index = position, position + 2 * rare - 1, 2 do
    step[ARGV[index]] = ARGV[index + 1]
  end
  position = position + 2 * rare
  steps[#steps + 1] = step
  if not seen[id] then
    seen[id] = true
    ids[#ids + 1] = id
  end
end

local tasks, tasks_by_id = open(ids)
for _, step in ipairs(steps) do
  apply(tasks_by_id[step.id], step)
end
flush(tasks, ARGV[2])
return #steps
