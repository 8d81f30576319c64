-- What is remembered of records that have expired. ARGV[2]: for how many seconds records are kept, '' for ever; ARGV[3]: the
-- time before which a finished record has expired, '' for none; ids. Gives the id, the owner and the time for each.

local found = {}
for index = 4, #ARGV do
  local id = ARGV[index]
  if call('EXISTS', META .. id) == 0 then
    local row, text = load(id), call('GET', EXPIRED .. id)
    if row then
      -- Its result has expired, or somebody deleted it; no clean-up has come by yet.
      local at = expired_at(row, ARGV[2], ARGV[3])
      if at then
        found[#found + 1] = { id, row[OWNER], at }
      end
    elseif text then
      local gone = unpacked(text)
      found[#found + 1] = { id, gone[1], gone[2] }
    end
  end
end
return found
