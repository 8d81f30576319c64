-- The events of a task, ARGV[2], from position ARGV[3], at most ARGV[4]; before them the SHA-1 of what the record has
-- taken in of what stock workers write, what these have written, and the first events in one text if the record has
-- them still.

local first = tonumber(ARGV[3])
local row = load(ARGV[2])
local text = false
local head = call('GETRANGE', META .. ARGV[2], 0, #OURS - 1)
if head ~= '' and (head ~= OURS or not row) then
  text = call('GET', META .. ARGV[2])
end
if not row or (head == '' and READY[row[STATE]]) then
  return { row and row[STOCK] or '', text, '', {} }
end
if row[LISTED] == '' then
  return { row[STOCK], text, row[LOG], {} }
end
return { row[STOCK], text, '', call('LRANGE', EVENTS .. ARGV[2], first, first + tonumber(ARGV[4]) - 1) }
