-- Apply transitions, in order.
--
-- ARGV[2]: seconds that a finished record is kept, '' for ever; then for each transition: the task's id, the state,
-- when (microseconds), how many fields follow, and these as name and value.
-- Fields beside those of the hash: result, traceback, error, date_done, replay, and stock, the SHA-1 of what a stock
-- worker wrote, from which the transition was made.

local expires = tonumber(ARGV[2])
local rows, rows_by_id = {}, {}
local position, length = 3, #ARGV

while position < length do
  local id, count = ARGV[position], tonumber(ARGV[position + 3])
  local step = { state = ARGV[position + 1], at = ARGV[position + 2] }
  position = position + 4
  for index = position, position + 2 * count - 1, 2 do
    step[ARGV[index]] = ARGV[index + 1]
  end
  position = position + 2 * count
  local row = rows_by_id[id]
  if not row then
    row = load(id)
    rows_by_id[id] = row
    rows[#rows + 1] = row
  end
  apply(row, step)
end

flush(rows, expires)
return #rows
